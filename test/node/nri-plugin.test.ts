/** The plugin over real sockets: as one that connects, again and again, and as one that was launched. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import * as fs from "node:fs";
import type * as net from "node:net";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { pathToFileURL } from "node:url";
import { Plugin } from "../../src/nri/gen/nri_pb.js";
import { type PluginState, startPlugin } from "../../src/nri/plugin.node.ts";
import type { Handlers } from "../../src/nri/session.ts";
import { socketStream } from "../../src/ttrpc/socket.node.ts";
import { folder } from "../support/machine.ts";
import { listen, NriRuntime } from "../support/nri-runtime.ts";
import { ROOT } from "../support/simulated-host.ts";

/** A plugin, and what it says of itself. */
function start(t: TestContext, socket: string, handlers: Handlers = {}) {
  const states: PluginState[] = [];
  let told = (): void => {};
  const plugin = startPlugin({
    name: "sluice",
    index: "90",
    socket,
    env: {},
    handlers: { createContainer: () => undefined, ...handlers },
    onState(state) {
      states.push(state);
      told();
    },
  });
  t.after(() => plugin.stop());
  const names = () => states.map((s) => ("error" in s ? `${s.state} ${s.error.code}` : s.state));
  /** Waits until the last that was told is `state`. */
  const until = async (state: string): Promise<void> => {
    while (names().at(-1) !== state) {
      await new Promise<void>((resolve) => {
        told = resolve;
      });
    }
  };
  return { plugin, names, until };
}

test("a plugin waits for a runtime, and for the next one when that has ended", async (t) => {
  const socket = path.join(folder(t), "nri/nri.sock");
  const { plugin, names, until } = start(t, socket);
  await until("unreachable E_NRI_CONNECT");
  fs.mkdirSync(path.dirname(socket));
  for (let round = 0; round < 3; round++) {
    const listener = await listen(t, socket);
    const runtime = await listener.next();
    await runtime.begin([{ id: "p" }]);
    await until("registered");
    await runtime.call(Plugin.method.createContainer, { pod: {}, container: {} });
    await listener.close();
    assert.equal(await runtime.closed, undefined);
    await until("unreachable E_NRI_CONNECT");
  }
  await plugin.stop();
  await plugin.ended;
  const round = ["connected", "registered", "lost E_NRI_CLOSED", "unreachable E_NRI_CONNECT"];
  assert.deepEqual(names(), ["unreachable E_NRI_CONNECT", ...round, ...round, ...round]);
  assert.equal(plugin.isLaunched, false);
});

test("a plugin that the runtime cuts off, or does not take, comes again, with one connection at a time", async (t) => {
  const socket = path.join(folder(t), "nri.sock");
  const listener = await listen(t, socket, { refuse: "not now" });
  const { plugin, names } = start(t, socket);
  for (let i = 0; i < 3; i++) {
    const runtime = await listener.next();
    await runtime.registered;
    await runtime.closed;
  }
  await plugin.stop();
  const round = ["connected", "lost E_NRI_REFUSED"];
  assert.deepEqual(names().slice(0, 6), [...round, ...round, ...round]);

  const other = path.join(folder(t), "nri.sock");
  const cutting = await listen(t, other);
  const late = start(t, other, { createContainer: () => new Promise(() => {}) });
  const first = await cutting.next();
  await first.begin();
  const call = first.call(Plugin.method.createContainer, { pod: {}, container: {} });
  first.close();
  await assert.rejects(call);
  const second = await cutting.next();
  await second.begin();
  await late.until("registered");
  assert.deepEqual(late.names(), ["connected", "registered", "lost E_NRI_CLOSED", "connected", "registered"]);
});

test("a plugin that is stopped while it waits, connects or registers ends", async (t) => {
  const dir = folder(t);
  const waiting = start(t, path.join(dir, "none/nri.sock"));
  await waiting.until("unreachable E_NRI_CONNECT");
  await waiting.plugin.stop();
  const socket = path.join(dir, "nri.sock");
  const listener = await listen(t, socket);
  const connecting = start(t, socket);
  await connecting.plugin.stop();
  const registering = start(t, socket);
  await registering.until("connected");
  await registering.plugin.stop();
  assert.deepEqual(registering.names(), ["connected"]);
  await listener.close();
});

test("a launched plugin has its name and its connection from the runtime, and ends with that", async (t) => {
  const module = pathToFileURL(path.join(ROOT, "src/nri/plugin.node.ts")).href;
  const script = `
    import { startPlugin } from ${JSON.stringify(module)};
    const plugin = startPlugin({
      name: "sluice", index: "90", socket: "/nowhere", env: process.env,
      handlers: { createContainer: () => undefined },
      onState: ({ state, error }) => console.log(state, error?.code ?? ""),
    });
    console.log(plugin.isLaunched);
    await plugin.ended;
    process.exitCode = 7;
  `;
  const child = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "-e", script], {
    cwd: ROOT,
    stdio: ["ignore", "pipe", "inherit", "pipe"],
    env: { NRI_PLUGIN_NAME: "gpus", NRI_PLUGIN_IDX: "42", NRI_PLUGIN_SOCKET: "3" },
  });
  t.after(() => child.kill());
  let said = "";
  child.stdout?.on("data", (text) => {
    said += text;
  });
  const ended = new Promise((resolve) => child.once("close", resolve));
  const runtime = new NriRuntime(socketStream(child.stdio[3] as net.Socket));
  await runtime.begin();
  const { pluginName, pluginIdx } = await runtime.registered;
  assert.deepEqual([pluginName, pluginIdx], ["gpus", "42"]);
  await runtime.call(Plugin.method.createContainer, { pod: {}, container: {} });
  runtime.close();
  assert.equal(await ended, 7);
  assert.equal(said, "true\nconnected \nregistered \nlost E_NRI_CLOSED\n");
});

test("a descriptor that is no socket is told", async () => {
  const states: string[] = [];
  const plugin = startPlugin({
    name: "sluice",
    index: "90",
    socket: "/nowhere",
    env: { NRI_PLUGIN_SOCKET: "x" },
    handlers: { createContainer: () => undefined },
    onState: (s) => void states.push("error" in s ? s.error.message : s.state),
  });
  await plugin.ended;
  assert.equal(states.length, 1);
  assert.match(states[0] as string, /^E_NRI_CONNECT: NRI_PLUGIN_SOCKET is "x", which is no socket/);
});
