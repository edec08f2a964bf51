// Runs a conversation, the script of the first argument, in a browser without a window, as a page from another origin
// than the servers', whose URLs are the other arguments.

import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { chromium } from "playwright-core";

const [script, ...servers] = process.argv.slice(2);
const path = (name) => fileURLToPath(new URL(name, import.meta.url));

// bundle makes a module of the script and its libraries. What they want of Node is the little below.
async function bundle() {
    const { outputFiles } = await build({
        entryPoints: [path(script)], bundle: true, write: false, format: "esm", platform: "browser", target: "esnext", logLevel: "error",
        alias: { "node:assert/strict": path("browser-assert.mjs") },
        banner: { js: `globalThis.global = globalThis; globalThis.process = { env: {}, argv: ${JSON.stringify(["", "", ...servers])}, exit: ended };` },
    });
    return outputFiles[0].contents;
}

const files = {
    "/": ["text/html", '<!doctype html><title>A conversation</title><script type="module" src="/script.js"></script>'],
    "/script.js": ["text/javascript", await bundle()],
    "/pkg/matrix_sdk_crypto_wasm_bg.wasm": [
        "application/wasm", await readFile(path("node_modules/@matrix-org/matrix-sdk-crypto-wasm/pkg/matrix_sdk_crypto_wasm_bg.wasm")),
    ],
};
const pages = createServer((request, response) => {
    const [type, content] = files[request.url] ?? [];
    response.writeHead(type ? 200 : 404, type && { "Content-Type": type });
    response.end(content);
});
await new Promise((resolve) => pages.listen(0, "127.0.0.1", resolve));

const executablePath = process.env.PATH.split(delimiter)
    .flatMap((folder) => ["chromium", "chromium-browser", "google-chrome"].map((name) => join(folder, name)))
    .find((name) => existsSync(name));
if (!executablePath) {
    throw new Error("there is no chromium in PATH: run test/setup");
}
// The sandbox does not work for root and in containers, nor does shared memory always suffice there.
const browser = await chromium.launch({ executablePath, timeout: 60_000, args: ["--no-sandbox", "--disable-dev-shm-usage", "--no-proxy-server"] });
const page = await browser.newPage();
const outcome = new Promise((resolve) => {
    const failed = (why) => { console.error(why); resolve(1); };
    // How long the script takes to load does not matter here: the conversation has its own patience.
    const open = () => page.goto(`http://127.0.0.1:${pages.address().port}/`, { waitUntil: "commit", timeout: 60_000 });
    page.exposeFunction("ended", resolve).then(open).catch(failed);
    page.on("pageerror", failed);
    page.on("crash", () => failed("the page crashed"));
    page.on("console", (message) => message.type() === "error" && !message.text().startsWith("Failed to load resource") && console.error(message.text()));
});
process.exitCode = await outcome;
await browser.close();
pages.closeAllConnections();
pages.close();
