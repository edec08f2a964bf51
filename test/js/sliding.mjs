// Two users, one of them with two devices, talk through the sliding sync of matrix-js-sdk. In the end all devices know the
// same, and what comes with sliding sync has arrived: receipts, typing, account data, sticky events.

import assert from "node:assert/strict";
import { connect, eventually, login, register, run, sdk, start, timeline, until } from "./client.mjs";

const { SlidingSync, SlidingSyncEvent, SlidingSyncState } = await import("matrix-js-sdk/lib/sliding-sync.js");

// slide lets a client of a session follow its rooms through a window.
async function slide(session, last = 99) {
    const client = connect(session);
    // More than all devices say at once: what comes while one is busy must not leave a gap, for nobody scrolls here.
    const info = { timeline_limit: 100, required_state: [["*", "*"]] };
    const sliding = new SlidingSync(client.baseUrl, new Map([["all", { ranges: [[0, last]], ...info }]]), info, client, 2_000);
    let complete = 0;
    sliding.on(SlidingSyncEvent.Lifecycle, (state, _, error) => {
        if (state === SlidingSyncState.Complete && !error) {
            complete++;
        }
    });
    await client.startClient({ slidingSync: sliding, pendingEventOrdering: sdk.PendingEventOrdering.Detached });
    await until("the first answer", client, () => complete > 0);
    return { client, sliding };
}

async function main() {
    const { client: alice } = await slide(await register("slidingalice"));
    const { client: bob } = await slide(await register("slidingbob"));
    const { client: tablet, sliding } = await slide(await login("slidingbob", "TABLET"), 0);
    const devices = [alice, bob, tablet];

    const { room_id: roomId } = await alice.createRoom({ preset: sdk.Preset.PrivateChat, name: "Talk", invite: [bob.getUserId()] });
    await until("the invite", bob, () => bob.getRoom(roomId)?.getMyMembership() === "invite");
    await bob.joinRoom(roomId);
    for (const device of devices) {
        await until("the join", device, () => device.getRoom(roomId)?.getMember(bob.getUserId())?.membership === "join");
    }

    const sent = new Map();
    await Promise.all(devices.map(async (device) => {
        for (let i = 0; i < 30; i++) {
            const body = `${device.getDeviceId()} ${i}`;
            sent.set((await device.sendTextMessage(roomId, body)).event_id, body);
        }
    }));
    for (const device of devices) {
        await until("all messages", device, () => [...sent.keys()].every((id) => device.getRoom(roomId).findEventById(id)));
    }
    const first = (await alice.sendTextMessage(roomId, "first")).event_id;
    await alice.sendMessage(roomId, {
        msgtype: "m.text", body: "* edited", "m.new_content": { msgtype: "m.text", body: "edited" },
        "m.relates_to": { rel_type: "m.replace", event_id: first },
    });
    await bob.sendEvent(roomId, "m.reaction", { "m.relates_to": { rel_type: "m.annotation", event_id: first, key: "👍" } });
    const mistake = (await bob.sendTextMessage(roomId, "a mistake")).event_id;
    await bob.redactEvent(roomId, mistake);
    for (const device of devices) {
        const room = device.getRoom(roomId);
        await until("the edit", device, () => room.findEventById(first)?.getContent().body === "edited");
        await until("the reaction", device, () => room.relations.getChildEventsForEvent(first, "m.annotation", "m.reaction")?.getRelations().length === 1);
        await until("the redaction", device, () => room.findEventById(mistake)?.isRedacted());
    }

    const last = (await bob.sendTextMessage(roomId, "the last one")).event_id;
    await until("the last one", alice, () => alice.getRoom(roomId).findEventById(last));
    assert.ok(alice.getRoom(roomId).getUnreadNotificationCount("total") > 0, "alice has unread messages");
    await alice.sendReadReceipt(alice.getRoom(roomId).findEventById(last));
    await until("the receipt", tablet, () => tablet.getRoom(roomId).getEventReadUpTo(alice.getUserId(), true) === last);
    await until("nothing unread", alice, () => alice.getRoom(roomId).getUnreadNotificationCount("total") === 0);
    await alice.sendTyping(roomId, true, 20_000);
    await until("typing", bob, () => bob.getRoom(roomId).getMember(alice.getUserId()).typing);
    await alice.sendTyping(roomId, false, 0);
    await until("the end of typing", bob, () => !bob.getRoom(roomId).getMember(alice.getUserId()).typing);
    await bob.setRoomTag(roomId, "m.favourite", { order: 0.5 });
    await until("the tag", tablet, () => tablet.getRoom(roomId).tags["m.favourite"]?.order === 0.5);

    // A window of one room sees another room come, and this one again once something happens here.
    const { room_id: other } = await alice.createRoom({ preset: sdk.Preset.PublicChat });
    await tablet.joinRoom(other);
    await until("the other room", tablet, () => tablet.getRoom(other)?.getMyMembership() === "join");
    await alice.sendTextMessage(other, "above");
    const hidden = (await alice.sendTextMessage(roomId, "out of the window")).event_id;
    await alice.sendTextMessage(other, "above again");
    sliding.setListRanges("all", [[0, 9]]);
    await until("the growing window", tablet, () => tablet.getRoom(roomId).findEventById(hidden));

    // Sticky events arrive by their extension, also with a timeline full of other things; delayed ones when they are due.
    await alice._unstable_sendStickyEvent(roomId, 600_000, null, "org.example.sticky", { msc4354_sticky_key: "me", body: "here" });
    await until("the sticky event", bob, () => [...bob.getRoom(roomId)._unstable_getStickyEvents()].length === 1);
    const { delay_id: leave } = await alice._unstable_sendDelayedStateEvent(roomId, { delay: 600_000 }, "org.example.member", { left: true }, "me");
    await alice._unstable_restartScheduledDelayedEvent(leave);
    await alice._unstable_sendScheduledDelayedEvent(leave);
    await until("the delayed event", bob, () => bob.getRoom(roomId).currentState.getStateEvents("org.example.member", "me")?.getContent().left);
    const { delay_id: soon } = await bob._unstable_sendDelayedEvent(roomId, { delay: 100 }, null, "m.room.message", { msgtype: "m.text", body: "soon" });
    await until("the event that is due", alice, () => alice.getRoom(roomId).getLiveTimeline().getEvents().some((e) => e.getContent().body === "soon"));
    await eventually("the end of the delayed event", async () => (await bob._unstable_getDelayedEvent(soon)).finalised?.event_id);

    const v3 = await start(await login("slidingbob", "CLASSIC"));
    const want = timeline(v3, roomId).slice(-20);
    for (const device of devices) {
        await until("the end", device, () => timeline(device, roomId).at(-1) === want.at(-1));
        assert.deepEqual(timeline(device, roomId).slice(-20), want, `${device.getDeviceId()} has another timeline`);
        assert.equal(device.getRoom(roomId).getJoinedMemberCount(), 2);
    }
    for (const device of [...devices, v3]) {
        device.stopClient();
    }
}

run(main);
