// What the conversations share: clients of the servers whose URLs are the arguments, without their chatter.

import assert from "node:assert/strict";

// The library logs to the console as it finds it; what matters is the outcome.
for (const method of ["log", "debug", "info", "warn", "trace"]) {
    console[method] = () => {};
}
export const sdk = await import("matrix-js-sdk");

export const servers = process.argv.slice(2);
export const password = "a password of the tests";
export const silent = { trace() {}, debug() {}, info() {}, warn() {}, error() {}, getChild: () => silent };

const patience = 60_000; // on a machine that does much else

// until waits until a condition holds, asking again whenever the client has news.
export async function until(what, client, condition, timeout = patience) {
    const end = Date.now() + timeout;
    while (!condition()) {
        if (Date.now() > end) {
            throw new Error(`${client.getDeviceId()} does not hear of ${what}`);
        }
        await new Promise((resolve) => {
            const heard = () => { clearTimeout(timer); client.off(sdk.ClientEvent.Event, heard); resolve(); };
            const timer = setTimeout(heard, 50);
            client.on(sdk.ClientEvent.Event, heard);
        });
    }
}

// eventually repeats an attempt until it gives something.
export async function eventually(what, attempt, timeout = patience) {
    const end = Date.now() + timeout;
    for (;;) {
        const result = await attempt();
        if (result) {
            return result;
        }
        if (Date.now() > end) {
            throw new Error(`${what} does not happen`);
        }
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
}

// fails returns the error with which a promise is rejected.
export async function fails(promise, errcode) {
    const error = await promise.then(() => null, (e) => e);
    assert.equal(error?.errcode, errcode, `${error}`);
    return error;
}

export async function register(name, deviceId, baseUrl = servers[0]) {
    const client = sdk.createClient({ baseUrl, logger: silent });
    // The first request tells what is asked for, as in a real registration.
    const refused = await client.registerRequest({ username: name, password }).then(() => null, (e) => e);
    assert.equal(refused?.httpStatus, 401);
    assert.deepEqual(refused.data.flows, [{ stages: ["m.login.dummy"] }]);
    const session = await client.registerRequest({
        username: name, password, device_id: deviceId, auth: { type: "m.login.dummy", session: refused.data.session },
    });
    return { ...session, baseUrl };
}

export async function login(name, deviceId, baseUrl = servers[0]) {
    const client = sdk.createClient({ baseUrl, logger: silent });
    const session = await client.loginRequest({
        type: "m.login.password", identifier: { type: "m.id.user", user: name }, password, device_id: deviceId,
    });
    return { ...session, baseUrl };
}

// connect makes the client of a session.
export function connect({ baseUrl = servers[0], user_id: userId, access_token: accessToken, device_id: deviceId }, options = {}) {
    return sdk.createClient({ baseUrl, userId, accessToken, deviceId, logger: silent, timelineSupport: true, ...options });
}

// start lets a client of a session sync.
export async function start(session, options = {}) {
    const client = connect(session);
    await client.startClient({ initialSyncLimit: 900, pendingEventOrdering: sdk.PendingEventOrdering.Detached, lazyLoadMembers: true, ...options });
    await until("the first sync", client, () => client.isInitialSyncComplete());
    return client;
}

export const timeline = (client, roomId) => client.getRoom(roomId).getLiveTimeline().getEvents().map((e) => e.getId());

// run ends the process with the outcome of a conversation.
export function run(main) {
    main().then(
        () => process.exit(0),
        (error) => {
            console.error(error);
            process.exit(1);
        },
    );
}
