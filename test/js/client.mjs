// What the conversations share: clients of the server whose URL is the first argument, without their chatter.

import assert from "node:assert/strict";

// The library logs to the console as it finds it; what matters is the outcome.
for (const method of ["log", "debug", "info", "warn", "trace"]) {
    console[method] = () => {};
}
export const sdk = await import("matrix-js-sdk");

export const baseUrl = process.argv[2];
export const password = "a password of the tests";
export const silent = { trace() {}, debug() {}, info() {}, warn() {}, error() {}, getChild: () => silent };

// until waits until a condition holds, asking again whenever the client has news.
export async function until(what, client, condition, timeout = 20_000) {
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

// eventually repeats an attempt until it gives something.
export async function eventually(what, attempt, timeout = 20_000) {
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

export async function register(name) {
    const client = sdk.createClient({ baseUrl, logger: silent });
    // The first request tells what is asked for, as in a real registration.
    const refused = await client.registerRequest({ username: name, password }).then(() => null, (e) => e);
    assert.equal(refused?.httpStatus, 401);
    assert.deepEqual(refused.data.flows, [{ stages: ["m.login.dummy"] }]);
    return client.registerRequest({ username: name, password, auth: { type: "m.login.dummy", session: refused.data.session } });
}

export async function login(name, deviceId) {
    const client = sdk.createClient({ baseUrl, logger: silent });
    return client.loginRequest({
        type: "m.login.password", identifier: { type: "m.id.user", user: name }, password, device_id: deviceId,
    });
}

// connect makes the client of a session.
export function connect({ user_id: userId, access_token: accessToken, device_id: deviceId }) {
    return sdk.createClient({ baseUrl, userId, accessToken, deviceId, logger: silent, timelineSupport: true });
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
