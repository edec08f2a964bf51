// What the conversations use of Node's assert, for a browser.

function assert(value, message = "not what was expected") {
    if (!value) {
        throw new Error(message);
    }
}

// canonical is the JSON of a value whose members are in order.
const canonical = (value) => JSON.stringify(value, (_, member) =>
    member && typeof member === "object" && !Array.isArray(member) ? Object.fromEntries(Object.entries(member).sort()) : member);

export default Object.assign(assert, {
    ok: assert,
    equal: (got, want, message) => assert(Object.is(got, want), message ?? `${got} is not ${want}`),
    deepEqual: (got, want, message) => assert(canonical(got) === canonical(want), message ?? `${canonical(got)} is not ${canonical(want)}`),
});
