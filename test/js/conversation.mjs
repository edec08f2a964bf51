// Two users with two devices each talk through matrix-js-sdk with the server whose URL is the only argument. In the
// end every device must have the same timeline, and know of all edits, reactions, redactions, receipts and typing.

import assert from "node:assert/strict";

// The library logs to the console as it finds it; what matters is the outcome.
for (const method of ["log", "debug", "info", "warn", "trace"]) {
    console[method] = () => {};
}
const sdk = await import("matrix-js-sdk");

const baseUrl = process.argv[2];
const password = "a password of the tests";
const messages = 100; // of each device
const silent = { trace() {}, debug() {}, info() {}, warn() {}, error() {}, getChild: () => silent };

// until waits until a condition holds, asking again whenever the client has news.
async function until(what, client, condition, timeout = 20_000) {
    const end = Date.now() + timeout;
    while (!condition()) {
        if (Date.now() > end) {
            throw new Error(`${client.getDeviceId()} does not hear of ${what}`);
        }
        await new Promise((resolve) => {
            const timer = setTimeout(resolve, 50);
            client.once(sdk.ClientEvent.Event, () => { clearTimeout(timer); resolve(); });
        });
    }
}

async function register(name) {
    const client = sdk.createClient({ baseUrl, logger: silent });
    // The first request tells what is asked for, as in a real registration.
    const refused = await client.registerRequest({ username: name, password }).then(() => null, (e) => e);
    assert.equal(refused?.httpStatus, 401);
    assert.deepEqual(refused.data.flows, [{ stages: ["m.login.dummy"] }]);
    const done = await client.registerRequest({ username: name, password, auth: { type: "m.login.dummy", session: refused.data.session } });
    return start(done);
}

async function login(name, deviceId) {
    const client = sdk.createClient({ baseUrl, logger: silent });
    return start(await client.loginRequest({
        type: "m.login.password", identifier: { type: "m.id.user", user: name }, password, device_id: deviceId,
    }));
}

async function start({ user_id: userId, access_token: accessToken, device_id: deviceId }) {
    const client = sdk.createClient({ baseUrl, userId, accessToken, deviceId, logger: silent, timelineSupport: true });
    await client.startClient({ initialSyncLimit: 900, pendingEventOrdering: sdk.PendingEventOrdering.Detached, lazyLoadMembers: true });
    await until("the first sync", client, () => client.isInitialSyncComplete());
    return client;
}

const timeline = (client, roomId) => client.getRoom(roomId).getLiveTimeline().getEvents().map((e) => e.getId());

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
        const error = await device.whoami().then(() => null, (e) => e);
        assert.equal(error?.errcode, "M_UNKNOWN_TOKEN");
    }
}

main().then(
    () => process.exit(0),
    (error) => {
        console.error(error);
        process.exit(1);
    },
);
