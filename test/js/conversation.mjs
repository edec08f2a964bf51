// Two users with two devices each talk through matrix-js-sdk with the server whose URL is the only argument. In the
// end every device must have the same timeline, and know of all edits, reactions, redactions, receipts and typing.

import assert from "node:assert/strict";

import { fails, login as session, register as account, run, sdk, start, timeline, until } from "./client.mjs";

const messages = 100; // of each device
const register = async (name) => start(await account(name));
const login = async (name, device) => start(await session(name, device));

async function main() {
    const alice = await register("jsalice");
    const phone = await login("jsalice", "JSALICEPHONE");
    const bob = await register("jsbob");
    const tablet = await login("jsbob", "JSBOBTABLET");
    const devices = [alice, phone, bob, tablet];

    const { room_id: roomId } = await alice.createRoom({
        preset: sdk.Preset.PrivateChat, name: "Talk", invite: [bob.getUserId()],
        initial_state: [{ type: "m.room.topic", state_key: "", content: { topic: "This and that" } }],
    });
    await until("the invite", tablet, () => tablet.getRoom(roomId)?.getMyMembership() === "invite");
    assert.equal(tablet.getRoom(roomId).name, "Talk");
    await bob.joinRoom(roomId);
    for (const device of devices) {
        await until("the join", device, () => device.getRoom(roomId)?.getMember(bob.getUserId())?.membership === "join");
    }

    const sent = new Map();
    await Promise.all(devices.map(async (device) => {
        for (let i = 0; i < messages; i++) {
            const body = `${device.getDeviceId()} ${i}`;
            const { event_id: id } = await device.sendTextMessage(roomId, body);
            sent.set(id, body);
        }
    }));
    assert.equal(sent.size, 4 * messages);
    for (const device of devices) {
        await until("all messages", device, () => [...sent.keys()].every((id) => device.getRoom(roomId).findEventById(id)));
    }

    const [first, second, third] = [...sent.keys()];
    await alice.sendEvent(roomId, "m.reaction", { "m.relates_to": { rel_type: "m.annotation", event_id: second, key: "👍" } });
    const author = devices.find((d) => sent.get(first).startsWith(d.getDeviceId() + " "));
    await author.sendMessage(roomId, {
        msgtype: "m.text", body: "* edited", "m.new_content": { msgtype: "m.text", body: "edited" },
        "m.relates_to": { rel_type: "m.replace", event_id: first },
    });
    const owner = devices.find((d) => sent.get(third).startsWith(d.getDeviceId() + " "));
    await owner.redactEvent(roomId, third, undefined, { reason: "a mistake" });
    for (const device of devices) {
        const room = device.getRoom(roomId);
        await until("the edit", device, () => room.findEventById(first).getContent().body === "edited");
        await until("the reaction", device, () =>
            room.relations.getChildEventsForEvent(second, "m.annotation", "m.reaction")?.getSortedAnnotationsByKey()?.[0]?.[0] === "👍");
        await until("the redaction", device, () => room.findEventById(third).isRedacted());
    }

    const last = (await bob.sendTextMessage(roomId, "the last one")).event_id;
    for (const device of devices) {
        await until("the last message", device, () => device.getRoom(roomId).findEventById(last));
    }
    assert.ok(alice.getRoom(roomId).getUnreadNotificationCount("total") > 0, "alice has unread messages");
    await alice.sendReadReceipt(alice.getRoom(roomId).findEventById(last));
    await until("the receipt", tablet, () => tablet.getRoom(roomId).getEventReadUpTo(alice.getUserId(), true) === last);
    await until("nothing unread", phone, () => phone.getRoom(roomId).getUnreadNotificationCount("total") === 0);
    await alice.sendTyping(roomId, true, 20_000);
    await until("typing", tablet, () => tablet.getRoom(roomId).getMember(alice.getUserId()).typing);
    await alice.sendTyping(roomId, false, 0);
    await until("the end of typing", tablet, () => !tablet.getRoom(roomId).getMember(alice.getUserId()).typing);

    const want = timeline(alice, roomId);
    assert.ok(want.length >= 4 * messages + 10);
    assert.equal(new Set(want).size, want.length, "an event is in the timeline twice");
    for (const device of devices) {
        assert.deepEqual(timeline(device, roomId), want, `${device.getDeviceId()} has another timeline`);
    }
    // A device that comes later reads the same history backwards.
    const late = await login("jsbob", "JSBOBLATE");
    const room = late.getRoom(roomId);
    while (await late.scrollback(room, 77) && room.oldState.paginationToken !== null) { /* to the beginning */ }
    assert.deepEqual(timeline(late, roomId), want, "a later device has another timeline");

    for (const device of [...devices, late]) {
        device.stopClient();
        await device.logout(true);
        await fails(device.whoami(), "M_UNKNOWN_TOKEN");
    }
}

run(main);
