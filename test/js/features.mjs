// Clients use what there is beside talking: threads, relations, search, spaces, knocking, upgrades, guests, profiles.

import assert from "node:assert/strict";
import { connect, eventually, fails, register, run, sdk, servers, silent, start, until } from "./client.mjs";

// put sends an event without the library's local echo: with threads, that does not survive that an event is back by sync
// before its request is answered.
let count = 0;
const put = (client, roomId, type, content) =>
    client.http.authedRequest("PUT", `/rooms/${encodeURIComponent(roomId)}/send/${type}/put${count++}`, undefined, content);
const text = async (client, roomId, body) => (await put(client, roomId, "m.room.message", { msgtype: "m.text", body })).event_id;

const bodies = (events) => events.map((e) => e.getContent().body);

// threads and relations, as a client shows them that comes later.
async function threads(alice, bob, roomId) {
    const root = await text(alice, roomId, "the root of a thread");
    const replies = [];
    for (let i = 0; i < 3; i++) {
        replies.push((await put(bob, roomId, "m.room.message", {
            msgtype: "m.text", body: `reply ${i}`, "m.relates_to": { rel_type: "m.thread", event_id: root },
        })).event_id);
    }
    await put(bob, roomId, "m.reaction", { "m.relates_to": { rel_type: "m.annotation", event_id: root, key: "👍" } });
    await put(bob, roomId, "m.room.message", {
        msgtype: "m.text", body: "* reply 2, edited", "m.new_content": { msgtype: "m.text", body: "reply 2, edited" },
        "m.relates_to": { rel_type: "m.replace", event_id: replies[2] },
    });
    await until("the thread", alice, () => alice.getRoom(roomId)?.getThread(root)?.length === 3);
    await until("the edited reply", alice, () => alice.getRoom(roomId).getThread(root).replyToEvent?.getContent().body === "reply 2, edited");

    const bundled = await alice.fetchRoomEvent(roomId, root);
    const summary = bundled.unsigned["m.relations"]["m.thread"];
    assert.equal(summary.count, 3);
    assert.equal(summary.latest_event.event_id, replies[2]);
    assert.equal(summary.current_user_participated, true, "alice has begun the thread");
    const page = await alice.relations(roomId, root, "m.thread", null, { limit: 2, dir: sdk.Direction.Backward });
    assert.deepEqual(page.events.map((e) => e.getId()), [replies[2], replies[1]]);
    const rest = await alice.relations(roomId, root, "m.thread", null, { limit: 2, dir: sdk.Direction.Backward, from: page.nextBatch });
    assert.deepEqual(rest.events.map((e) => e.getId()), [replies[0]]);
    assert.ok(!rest.nextBatch);
    const reactions = await alice.relations(roomId, root, "m.annotation", "m.reaction");
    assert.equal(reactions.events.length, 1);

    await alice.getRoom(roomId).createThreadsTimelineSets();
    await alice.getRoom(roomId).fetchRoomThreads();
    assert.deepEqual(alice.getRoom(roomId).getThreads().map((t) => t.id), [root]);

    // The thread is read by itself.
    const thread = alice.getRoom(roomId).getThread(root);
    await until("unread replies", alice, () => alice.getRoom(roomId).getThreadUnreadNotificationCount(root, "total") === 3);
    await alice.sendReadReceipt(thread.findEventById(replies[2]));
    await until("a thread that is read", alice, () => alice.getRoom(roomId).getThreadUnreadNotificationCount(root, "total") === 0);
    return root;
}

async function search(alice, bob, roomId) {
    const needle = await text(bob, roomId, "a needle in the haystack");
    await text(bob, roomId, "more hay");
    const found = await eventually("the needle in the index", async () => {
        const results = await alice.searchRoomEvents({ term: "needle" });
        return results.count > 0 ? results : null;
    });
    assert.equal(found.results[0].context.getEvent().getId(), needle);
    assert.deepEqual(found.highlights, ["needle"]);
    const none = await alice.searchRoomEvents({ term: "needle", filter: { rooms: [roomId], senders: [alice.getUserId()] } });
    assert.equal(none.count, 0);
    const people = await eventually("bob in the directory", async () => {
        const users = await alice.searchUserDirectory({ term: "featuresbob" });
        return users.results.length > 0 ? users.results : null;
    });
    assert.equal(people[0].user_id, bob.getUserId());
}

async function spaces(alice, bob) {
    const { room_id: space } = await alice.createRoom({ name: "Space", preset: sdk.Preset.PublicChat, creation_content: { type: "m.space" } });
    const children = [];
    for (const name of ["one", "two"]) {
        const { room_id: child } = await alice.createRoom({ name, preset: sdk.Preset.PublicChat });
        await alice.sendStateEvent(space, "m.space.child", { via: [alice.getDomain()], order: name }, child);
        children.push(child);
    }
    const first = await bob.getRoomHierarchy(space, 2);
    assert.deepEqual(first.rooms.map((r) => r.room_id), [space, children[0]]);
    assert.deepEqual(first.rooms[0].children_state.map((e) => e.state_key), children);
    const second = await bob.getRoomHierarchy(space, 2, undefined, undefined, first.next_batch);
    assert.deepEqual(second.rooms.map((r) => r.room_id), [children[1]]);
    assert.ok(!second.next_batch);
    const summary = await bob.getRoomSummary(space, [alice.getDomain()]);
    assert.equal(summary.room_type, "m.space");
    assert.equal(summary.num_joined_members, 1);
}

async function knocking(alice, bob) {
    const { room_id: roomId } = await alice.createRoom({
        name: "Closed", initial_state: [{ type: "m.room.join_rules", state_key: "", content: { join_rule: "knock" } }],
    });
    await fails(bob.joinRoom(roomId), "M_FORBIDDEN");
    await bob.knockRoom(roomId, { reason: "let me in" });
    await until("the knock", alice, () => alice.getRoom(roomId)?.getMember(bob.getUserId())?.membership === "knock");
    await until("the own knock", bob, () => bob.getRoom(roomId)?.getMyMembership() === "knock");
    assert.equal(bob.getRoom(roomId).name, "Closed");
    await alice.invite(roomId, bob.getUserId());
    await until("the invite", bob, () => bob.getRoom(roomId)?.getMyMembership() === "invite");
    await bob.joinRoom(roomId);
    await until("the join", alice, () => alice.getRoom(roomId)?.getMember(bob.getUserId())?.membership === "join");
}

async function upgrade(alice, bob) {
    const { room_id: old } = await alice.createRoom({ name: "Old", preset: sdk.Preset.PublicChat, room_alias_name: "features", room_version: "10" });
    await bob.joinRoom(old);
    const { replacement_room: replacement } = await alice.upgradeRoom(old, "11");
    await until("the tombstone", bob, () => bob.getRoom(old)?.currentState.getStateEvents("m.room.tombstone", "")?.getContent().replacement_room === replacement);
    await bob.joinRoom(replacement);
    await until("the new room", bob, () => bob.getRoom(replacement)?.getMyMembership() === "join");
    const room = bob.getRoom(replacement);
    await until("its name", bob, () => room.name === "Old");
    assert.equal(room.getVersion(), "11");
    assert.equal(room.findPredecessor().roomId, old);
    assert.equal((await bob.getRoomIdForAlias(`#features:${bob.getDomain()}`)).room_id, replacement);
    await fails(text(bob, old, "too late"), "M_FORBIDDEN");
}

async function guests(alice) {
    const open = { type: "m.room.guest_access", state_key: "", content: { guest_access: "can_join" } };
    const { room_id: roomId } = await alice.createRoom({ name: "Open", preset: sdk.Preset.PublicChat, initial_state: [open] });
    const { room_id: closed } = await alice.createRoom({
        preset: sdk.Preset.PublicChat, initial_state: [{ ...open, content: { guest_access: "forbidden" } }],
    });
    const session = await sdk.createClient({ baseUrl: servers[0], logger: silent }).registerGuest({});
    const guest = connect(session);
    guest.setGuest(true);
    await fails(guest.joinRoom(closed), "M_GUEST_ACCESS_FORBIDDEN").catch(() => fails(guest.joinRoom(closed), "M_FORBIDDEN"));
    await guest.joinRoom(roomId);
    await guest.startClient({ pendingEventOrdering: sdk.PendingEventOrdering.Detached });
    await until("the room", guest, () => guest.getRoom(roomId)?.getMyMembership() === "join");
    const id = await text(guest, roomId, "I am only looking");
    await until("the guest's message", alice, () => alice.getRoom(roomId)?.findEventById(id));
    await fails(guest.createRoom({}), "M_GUEST_ACCESS_FORBIDDEN");
    guest.stopClient();
}

async function main() {
    const alice = await start(await register("featuresalice"), { threadSupport: true });
    const bob = await start(await register("featuresbob"), { threadSupport: true });
    const { room_id: roomId } = await alice.createRoom({ preset: sdk.Preset.PublicChat, name: "Room" });
    await bob.joinRoom(roomId);
    await until("bob", alice, () => alice.getRoom(roomId)?.getMember(bob.getUserId())?.membership === "join");

    await threads(alice, bob, roomId);
    await search(alice, bob, roomId);
    await spaces(alice, bob);
    await knocking(alice, bob);
    await upgrade(alice, bob);
    await guests(alice);

    await bob.setExtendedProfileProperty("org.example.colour", "blue");
    assert.equal(await alice.getExtendedProfileProperty(bob.getUserId(), "org.example.colour"), "blue");
    assert.ok(bodies(alice.getRoom(roomId).getLiveTimeline().getEvents()).includes("more hay"));
    alice.stopClient();
    bob.stopClient();
}

run(main);
