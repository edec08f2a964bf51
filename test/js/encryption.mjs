// Two users with two devices each talk in an encrypted room, with the library's cryptography; others come and go: a device
// that nobody has verified and that logs out, a user who is removed, a device that restores the keys. In the end every
// device must read the messages that were meant for it, and no other. It runs in Node and, by browser.mjs, in a browser.

import assert from "node:assert/strict";
import { connect, eventually, login, register, run, sdk, servers, until } from "./client.mjs";

const { CryptoEvent, VerificationPhase, VerifierEvent, decodeRecoveryKey } = await import("matrix-js-sdk/lib/crypto-api/index.js");

const messages = 10; // of each device and round
const patience = 120_000; // on a machine that does much else
const soon = (what, attempt) => eventually(what, attempt, patience);

// inTurn sends what a device says in the order in which it says it. The library does not wait for one message before it
// sends the next one, and whoever is done with comparing emoji before having told what they have seen is not believed.
// Nor does a browser's cache, which devices otherwise do not share, let one of them wait for the other's answer.
function inTurn() {
    let last = Promise.resolve();
    return (url, options) => {
        const ask = () => fetch(url, { ...options, cache: "no-store" });
        if (options?.method !== "PUT") {
            return ask();
        }
        const answer = last.then(ask);
        last = answer.catch(() => {});
        return answer;
    };
}

// start lets a device with keys sync. The recovery key is what its user would be asked for.
async function start(session, recoveryKey) {
    const client = connect(session, {
        fetchFn: inTurn(),
        cryptoCallbacks: {
            getSecretStorageKey: async ({ keys }) => recoveryKey ? [Object.keys(keys)[0], decodeRecoveryKey(recoveryKey)] : null,
        },
    });
    await client.initRustCrypto({ useIndexedDB: false });
    client.requests = [];
    client.on(CryptoEvent.VerificationRequestReceived, (request) => client.requests.push(request));
    // What comes while a device is busy must not leave a gap, for nobody scrolls here.
    const filter = new sdk.Filter(client.getUserId());
    filter.setTimelineLimit(900);
    await client.startClient({ filter, initialSyncLimit: 900, pendingEventOrdering: sdk.PendingEventOrdering.Detached });
    await until("the first sync", client, () => client.isInitialSyncComplete(), patience);
    return client;
}

// compare verifies one device by another: both show the same emoji, and both users say so.
async function compare(asking, request, answering, byRequest) {
    const received = await soon("the request", () => answering.requests.find(byRequest));
    await received.accept();
    await soon("the acceptance", () => request.phase === VerificationPhase.Ready);
    const sides = [];
    const show = (verifier) => {
        const shown = new Promise((resolve, reject) => {
            verifier.on(VerifierEvent.ShowSas, resolve);
            verifier.on(VerifierEvent.Cancel, reject);
        });
        // Nobody waits for the end before the emoji are compared, when it may have failed.
        const done = verifier.verify();
        done.catch(() => {});
        sides.push({ shown, done });
    };
    show(await request.startVerification("m.sas.v1"));
    show(await soon("the start", () => received.phase === VerificationPhase.Started && received.verifier));
    const [one, other] = await Promise.all(sides.map((side) => side.shown));
    assert.deepEqual(one.sas, other.sas);
    assert.equal(one.sas.emoji.length, 7);
    await Promise.all([one.confirm(), other.confirm()]);
    await Promise.all(sides.map((side) => side.done));
    assert.equal(request.phase, VerificationPhase.Done);
}

const status = (judge, device) => judge.getCrypto().getDeviceVerificationStatus(device.getUserId(), device.getDeviceId());
// A device trusts another one if it has verified the identity of its user and that identity has signed it.
const trusts = async (judge, device) => (await status(judge, device))?.crossSigningVerified;

// identities gives both users identities, their second devices included, and alice a backup of her keys.
async function identities(alice, phone, bob, tablet) {
    for (const device of [alice, bob]) {
        // Who has no keys yet need not give a password to upload some.
        await device.getCrypto().bootstrapCrossSigning({ setupNewCrossSigning: true, authUploadDeviceSigningKeys: (make) => make(null) });
        assert.ok(await device.getCrypto().isCrossSigningReady());
    }

    const key = await alice.getCrypto().createRecoveryKeyFromPassphrase();
    alice.cryptoCallbacks.getSecretStorageKey = async ({ keys }) => [Object.keys(keys)[0], key.privateKey];
    await alice.getCrypto().bootstrapSecretStorage({ createSecretStorageKey: async () => key, setupNewKeyBackup: true });
    await soon("the backup", () => alice.getCrypto().getActiveSessionBackupVersion());

    // alice's phone is verified by emoji, and gets the secrets from her first device.
    await soon("alice's identity", () => phone.getCrypto().userHasCrossSigningKeys());
    assert.ok(!await trusts(alice, phone));
    const request = await phone.getCrypto().requestOwnUserVerification();
    await compare(phone, request, alice, (r) => r.transactionId === request.transactionId);
    await soon("the phone is trusted", () => trusts(alice, phone));
    await soon("the secrets", async () => Object.values((await phone.getCrypto().getCrossSigningStatus()).privateKeysCachedLocally).every(Boolean));
    await soon("the key of the backup", async () => await phone.getCrypto().getSessionBackupPrivateKey() && phone.getCrypto().getActiveSessionBackupVersion());
    // bob's tablet is signed by his first device.
    await soon("the tablet", async () => (await bob.getCrypto().getUserDeviceInfo([bob.getUserId()])).get(bob.getUserId())?.has(tablet.getDeviceId()));
    await bob.getCrypto().crossSignDevice(tablet.getDeviceId());
    await soon("the signature of the tablet", () => trusts(bob, tablet));
    await soon("the tablet's own signature", async () => (await status(tablet, tablet)).signedByOwner);
    return key.encodedPrivateKey;
}

// The talk: what was sent, and who may read it.
class Talk {
    constructor(roomId) {
        this.roomId = roomId;
        this.sent = [];
    }

    async say(device, body, readers) {
        const { event_id: id } = await device.sendTextMessage(this.roomId, body);
        this.sent.push({ id, body, readers: new Set(readers) });
        return id;
    }

    // round lets all devices begin to talk one after another, and go on at once, until all readers have read. If two began
    // at once, each would make an Olm session with the other one, and the library would send its Megolm session once more;
    // of two such messages in one answer of /sync it takes the later one, with which the first of what was said is sealed.
    async round(name, devices, readers) {
        const say = (device, i) => this.say(device, `${name} ${i} from ${device.getDeviceId()}`, readers);
        for (const device of devices) {
            await say(device, 0);
            await Promise.all(readers.map((reader) => this.read(reader)));
        }
        await Promise.all(devices.map(async (device) => {
            for (let i = 1; i < messages; i++) {
                await say(device, i);
            }
        }));
        await Promise.all(readers.map((reader) => this.read(reader)));
    }

    // event gives what a device knows of a message, once it has tried to decrypt it.
    event(device, id) {
        const event = device.getRoom(this.roomId)?.findEventById(id);
        return event && !event.isBeingDecrypted() && (event.isDecryptionFailure() || event.getClearContent()) ? event : undefined;
    }

    // read waits until a device reads what is meant for it.
    async read(device) {
        for (const { id, body, readers } of this.sent) {
            if (readers.has(device)) {
                const readable = () => this.event(device, id) && !this.event(device, id).isDecryptionFailure();
                await until(`"${body}"`, device, readable, patience).catch((error) => {
                    const event = device.getRoom(this.roomId)?.findEventById(id);
                    throw new Error(`${error.message}: ${event ? event.decryptionFailureReason : "it has not come"}`);
                });
                assert.equal(this.event(device, id).getContent().body, body);
                assert.equal(this.event(device, id).getWireType(), "m.room.encrypted");
            }
        }
    }

    // check finds that a device reads what is meant for it, and only that.
    async check(device) {
        await this.read(device);
        for (const { id, body, readers } of this.sent) {
            if (!readers.has(device)) {
                const event = this.event(device, id);
                assert.ok(!event || event.isDecryptionFailure(), `${device.getDeviceId()} reads "${body}"`);
            }
        }
    }
}

// knows waits until devices know of a device, or that it is gone.
async function knows(devices, other, expected = true) {
    for (const device of devices) {
        await soon(`${device.getDeviceId()} knows of ${other.getDeviceId()}: ${expected}`, async () =>
            (await device.getCrypto().getUserDeviceInfo([other.getUserId()])).get(other.getUserId())?.has(other.getDeviceId()) === expected);
    }
}

async function joined(devices, roomId, user, membership = "join") {
    for (const device of devices) {
        await until(`${membership} of ${user}`, device, () => device.getRoom(roomId)?.getMember(user)?.membership === membership, patience);
    }
}

// ready waits until devices know that a room is encrypted.
async function ready(devices, roomId) {
    for (const device of devices) {
        await soon(`${device.getDeviceId()} can encrypt`, () => device.getCrypto().isEncryptionEnabledInRoom(roomId));
    }
}

// people logs in alice of the first server and bob of the last one, each with two devices of which one trusts the other.
async function people() {
    const [here, there] = [servers[0], servers.at(-1)];
    const alice = await start(await register("cryptalice", "ALICE", here));
    const phone = await start(await login("cryptalice", "PHONE", here));
    const bob = await start(await register("cryptbob", "BOB", there));
    const tablet = await start(await login("cryptbob", "TABLET", there));
    return { alice, phone, bob, tablet, recoveryKey: await identities(alice, phone, bob, tablet) };
}

// meet has alice make an encrypted room that bob joins.
async function meet({ alice, phone, bob, tablet }) {
    const { room_id: roomId } = await alice.createRoom({
        preset: sdk.Preset.PrivateChat,
        initial_state: [
            { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } },
            // Otherwise whoever is invited is given the keys of what was said before.
            { type: "m.room.history_visibility", state_key: "", content: { history_visibility: "joined" } },
        ],
    });
    const talk = new Talk(roomId);
    await joined([alice, phone], roomId, alice.getUserId());
    await ready([alice, phone], roomId);
    await talk.say(alice, "before bob was invited", [alice, phone]);
    await enter(talk, [alice, phone], [bob, tablet]);
    return talk;
}

// enter has a user with some devices join whom the first device of the room invites.
async function enter({ roomId }, here, guests) {
    const [guest] = guests;
    await here[0].invite(roomId, guest.getUserId());
    await until("the invite", guest, () => guest.getRoom(roomId)?.getMyMembership() === "invite", patience);
    await guest.joinRoom(roomId, { viaServers: [here[0].getDomain()] });
    await joined([...here, ...guests], roomId, guest.getUserId());
    await acquainted(roomId, here, guests);
}

// acquainted waits until devices of a room can talk with others that are new there.
async function acquainted(roomId, here, late) {
    await ready(late, roomId);
    for (const device of late) {
        await knows(here, device);
    }
    for (const device of here) {
        await knows(late, device);
    }
}

// trust has the users verify each other, in the room.
async function trust(talk, { alice, phone, bob, tablet }) {
    const request = await alice.getCrypto().requestVerificationDM(bob.getUserId(), talk.roomId);
    await compare(alice, request, bob, (r) => r.roomId === talk.roomId);
    for (const [judge, other] of [[alice, bob], [bob, alice], [phone, bob]]) {
        await soon(`${judge.getDeviceId()} trusts ${other.getUserId()}`, async () =>
            (await judge.getCrypto().getUserVerificationStatus(other.getUserId())).isCrossSigningVerified());
    }
    await soon("the tablet is trusted", () => trusts(alice, tablet));
}

// visit has bob log in once more, with a device that nobody verifies: it reads what comes, but not what was said, nor what
// is said once it is logged out.
async function visit(talk, four) {
    const [alice] = four;
    const stranger = await start(await login("cryptbob", "STRANGER", servers.at(-1)));
    await acquainted(talk.roomId, four, [stranger]);
    await talk.round("second", [...four, stranger], [...four, stranger]);
    alice.getCrypto().globalBlacklistUnverifiedDevices = true;
    const secret = await talk.say(alice, "for verified devices", four);
    alice.getCrypto().globalBlacklistUnverifiedDevices = false;
    await soon("the reason", () => talk.event(stranger, secret)?.decryptionFailureReason === "MEGOLM_KEY_WITHHELD_FOR_UNVERIFIED_DEVICE");
    await talk.say(alice, "for all devices", [...four, stranger]);
    await talk.check(stranger);
    await stranger.logout();
    await knows(four, stranger, false);
    return stranger;
}

// leave has a user come and be removed.
async function leave(talk, four) {
    const carol = await start(await register("cryptcarol", "CAROL", servers.at(-1)));
    await enter(talk, four, [carol]);
    await talk.round("third", [...four, carol], [...four, carol]);
    await talk.check(carol);
    await four[0].kick(talk.roomId, carol.getUserId());
    await joined([...four, carol], talk.roomId, carol.getUserId(), "leave");
    return carol;
}

// sealed finds that devices can read what was meant for them, and only that, even if somebody hands all of it to them.
async function sealed({ roomId, sent }, from, devices) {
    for (const { id, body, readers } of sent) {
        const wire = await from.fetchRoomEvent(roomId, id);
        assert.ok(!JSON.stringify(wire).includes(body));
        for (const reader of devices) {
            const event = new sdk.MatrixEvent(wire);
            await reader.decryptEventIfNeeded(event);
            assert.equal(event.isDecryptionFailure(), !readers.has(reader), `"${body}" at ${reader.getDeviceId()}`);
        }
    }
}

// restore has alice log in with a device that gets all keys of the backup with the recovery key.
async function restore(talk, { alice, bob, recoveryKey }) {
    // What the library tells of the backup it has remembered.
    const backedUp = async () => (await alice.http.authedRequest("GET", "/room_keys/version")).count;
    await soon("all keys are in the backup", async () => await backedUp() === (await alice.getCrypto().exportRoomKeys()).length);
    const late = await start(await login("cryptalice", "LATE", servers[0]), recoveryKey);
    await soon("alice's identity", () => late.getCrypto().userHasCrossSigningKeys());
    await late.getCrypto().bootstrapCrossSigning({});
    await soon("the late device is trusted", () => trusts(bob, late));
    await late.getCrypto().loadSessionBackupPrivateKeyFromSecretStorage();
    const { total, imported } = await late.getCrypto().restoreKeyBackup();
    assert.equal(total, await backedUp());
    assert.equal(imported, total);
    for (const { readers } of talk.sent) {
        if (readers.has(alice)) {
            readers.add(late);
        }
    }
    return late;
}

async function main() {
    const who = await people();
    const four = [who.alice, who.phone, who.bob, who.tablet];
    const talk = await meet(who);
    await talk.round("first", four, four);
    await trust(talk, who);
    const stranger = await visit(talk, four);
    const carol = await leave(talk, four);
    await talk.round("fourth", four, four);
    await sealed(talk, who.alice, [who.tablet, carol, stranger]);

    const late = await restore(talk, who);
    const all = [...four, late];
    await acquainted(talk.roomId, four, [late]);
    await talk.round("last", all, all);
    for (const device of all) {
        await talk.check(device);
        device.stopClient();
    }
}

run(main);
