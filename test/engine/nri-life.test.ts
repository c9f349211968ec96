/** sluiced in front of real engines while things go wrong: kills, restarts, many at once, other plugins, no plugin at all. */

import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as path from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { type ContainerAdjustment, ContainerAdjustmentSchema } from "../../src/nri/gen/nri_pb.js";
import { startPlugin } from "../../src/nri/plugin.node.ts";
import { type Container, type ContainerOptions, CriError } from "../lab/cri.ts";
import type { Machine } from "../lab/machine.ts";
import {
  admit,
  allocated,
  assertHas,
  auditOf,
  decisionOf,
  ENGINES,
  GPU,
  killSluiced,
  nodesOf,
  noted,
  REAL,
  refused,
  remove,
  run,
  type Scene,
  specOf,
  start,
  step,
  uuid,
} from "../lab/pods.ts";
import { creations } from "../lab/witness.ts";
import { random } from "../support/random.ts";

const STAMP = "sluice.dev/plan";
const ALL = { env: { NVIDIA_VISIBLE_DEVICES: "all" } };
const GPU_0 = { containers: { main: allocated(uuid(0)) }, annotations: { "gpu.sluice.dev/pod": `${GPU}=0` } };

/** Another plugin, which adjusts each container in the same way. */
async function otherPlugin(
  t: TestContext,
  machine: Machine,
  index: string,
  adjust: MessageInitShape<typeof ContainerAdjustmentSchema>,
): Promise<void> {
  const adjustment: ContainerAdjustment = create(ContainerAdjustmentSchema, adjust);
  await new Promise<void>((registered) => {
    const plugin = startPlugin({
      name: "other",
      index,
      socket: path.join(machine.dir, "run/nri/nri.sock"),
      env: {},
      onState: ({ state }) => state === "registered" && registered(),
      handlers: { createContainer: () => adjustment },
    });
    t.after(() => plugin.stop());
  });
}

/** What the engine says of a call that fails. */
async function failure(call: Promise<unknown>): Promise<string> {
  const error = await call.then(
    () => assert.fail("it does not fail"),
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof CriError, String(error));
  return error.details;
}

/** The digest of a container's receipt. */
function receiptOf({ machine }: Scene, { id }: Container): string | undefined {
  const file = path.join(machine.dir, `run/sluice/receipts/${id}.json`);
  return fs.existsSync(file) ? (JSON.parse(fs.readFileSync(file, "utf8")) as { digest: string }).digest : undefined;
}

for (const engine of ENGINES) {
  test(`sluiced and ${engine.name}, when things go wrong`, engine.options, async (t) => {
    const scene = await start(t, engine);
    const { sluiced, machine, engine: daemon, cri } = scene;

    await step(scene, "100 pods at once have each what was allocated to them", async (scene) => {
      const ways: Partial<ContainerOptions>[] = [
        ALL,
        { annotations: { "gpu.sluice.dev": `${GPU}=0` } },
        { env: { NVIDIA_VISIBLE_DEVICES: uuid(1) } },
        {},
      ];
      const pods = Array.from({ length: 100 }, async (_, i) => {
        const ask = ways[i % 4] as Partial<ContainerOptions>;
        // By the third and later quarters also what the other has, and nothing.
        const own = [[0], [1], [0, 1], []][Math.floor(i / 25)] as number[];
        const p = await admit(scene, { containers: { main: allocated(...own.map(uuid)) } });
        const wanted = [own, [0], [1], []][i % 4] as number[];
        const isAllowed = wanted.every((n) => own.includes(n)) && !(ask === ALL && own.length === 0);
        if (!isAllowed) {
          assert.match(await failure(run(scene, p, ask)), /sluice: E_NOT_ALLOCATED: /);
          assert.equal(decisionOf(scene, p).decision, "refused");
          return undefined;
        }
        const c = await run(scene, p, { ...ask, start: i % 25 < 4 }); // a few of each kind: starting them all takes long
        const nodes = wanted.map((n) => `nvidia${n}`).concat(wanted.length > 0 ? ["nvidiactl"] : []);
        assert.deepEqual(await nodesOf(c), nodes, `${i}`);
        if (wanted.length === 0) assert.deepEqual(auditOf(scene, p), []);
        else assert.equal(decisionOf(scene, p).decision, "granted");
        return wanted.length > 0 ? c.id : undefined;
      });
      const given = (await Promise.all(pods)).filter((id) => id !== undefined);
      assert.deepEqual(sluiced.receipts(), given.sort());
      noted(scene, "NRI, failures", "100 pods created at once", "each as allocated, or refused");
    });
    assert.deepEqual(sluiced.receipts(), []);

    await step(
      scene,
      "killed and started again, it keeps the receipts of those that live, and of no others",
      async (scene) => {
        const [p, q] = [await admit(scene, GPU_0), await admit(scene, GPU_0)];
        const [stays, goes] = [await run(scene, p), await run(scene, q)];
        assert.deepEqual(sluiced.receipts(), [stays.id, goes.id].sort());
        await sluiced.kill();
        await goes.remove();
        assert.deepEqual(sluiced.receipts(), [stays.id, goes.id].sort());
        await sluiced.start();
        assert.deepEqual(sluiced.receipts(), [stays.id]);
        await assertHas(scene, stays, [0]);
      },
    );

    await step(
      scene,
      "a container that was created without it is not started, and made anew it has its GPU",
      async (scene) => {
        const p = await admit(scene, GPU_0);
        await killSluiced(scene);
        const missed = await run(scene, p, { start: false });
        assert.deepEqual(await nodesOf(missed), []);
        await sluiced.start();
        if (engine.isStartRefused) assert.match(await failure(missed.start()), /sluice: E_STAMP: /);
        else await missed.start();
        assert.equal(auditOf(scene, p).at(-1)?.decision, engine.isStartRefused ? "refused" : "reported");
        await assertHas(scene, await run(scene, p, { attempt: 1 }), [0]);
        noted(
          scene,
          "NRI, failures",
          "created while sluiced was away, asks",
          engine.isStartRefused ? "refused when it starts" : "starts without",
        );
      },
    );

    for (const [what, act] of [
      ["restarted", () => daemon.restart()],
      [
        "killed and started",
        () => {
          daemon.kill();
          daemon.start();
        },
      ],
    ] as const) {
      await step(scene, `the engine ${what}: sluiced is back, and knows what lived on`, async (scene) => {
        const p = await admit(scene, GPU_0);
        const c = await run(scene, p);
        const registrations = sluiced.registrations();
        act();
        await sluiced.registered(registrations + 1);
        await cri.ready();
        assert.deepEqual(sluiced.receipts(), [c.id]);
        await assertHas(scene, c, [0]);
        const q = await admit(scene, { containers: { main: allocated(uuid(1)) } });
        await assertHas(scene, await run(scene, q, ALL), [1]);
        await refused(scene, await admit(scene, { ...GPU_0, containers: { main: {} } }), {}, "E_NOT_ALLOCATED");
        noted(scene, "NRI, failures", `engine ${what}`, "sluiced is back, what it gave is kept");
      });
    }

    await step(scene, "the kubelet started anew is asked on its new socket", async (scene) => {
      sluiced.kubelet.kill();
      await sluiced.kubelet.start();
      await assertHas(scene, await run(scene, await admit(scene, GPU_0)), [0]);
    });

    for (const index of ["10", "95"]) {
      await step(scene, `what the plugin ${index}-other sets too is an error that names it`, async (scene) => {
        const { t } = scene;
        await t.test("a variable", async (t) => {
          await otherPlugin(t, machine, index, { env: [{ key: "NVIDIA_VISIBLE_DEVICES", value: "0" }] });
          const said = await failure(run(scene, await admit(scene, GPU_0)));
          assert.match(said, new RegExp(`${index}-other`));
          assert.match(said, /90-sluice/);
        });
        await t.test("a mount", async (t) => {
          const mount = { source: "/etc", destination: "/usr/bin/nvidia-smi", type: "bind", options: ["ro", "bind"] };
          await otherPlugin(t, machine, index, { mounts: [mount] });
          const said = await failure(run(scene, await admit(scene, GPU_0)));
          assert.match(said, new RegExp(`${index}-other`));
        });
        await t.test("a device", async (t) => {
          const device = { path: "/dev/nvidia0", type: "c", major: 1n, minor: 3n };
          await otherPlugin(t, machine, index, { linux: { devices: [device] } });
          const said = await failure(run(scene, await admit(scene, GPU_0)));
          if (index === "10") assert.match(said, /sluice: E_NRI_CONFLICT: /);
          else assert.match(said, new RegExp(`${index}-other`));
        });
        if (engine.isFailureTold) assert.deepEqual(sluiced.receipts(), []);
        for (const p of scene.pods.keys()) await remove(scene, p);
        assert.deepEqual(sluiced.receipts(), []);
      });
    }

    await step(scene, "a GPU that another plugin adds behind our back is found", async (scene) => {
      const device = { path: "/dev/x", type: "c", major: 195n, minor: BigInt(REAL) };
      await otherPlugin(scene.t, machine, "95", { linux: { devices: [device] } });
      const p = await admit(scene, { containers: { main: {} } });
      const found = /sluice: E_NOT_ALLOCATED: .*195:8/;
      if (engine.isStartRefused) {
        const c = await run(scene, p, { start: false });
        assert.deepEqual(auditOf(scene, p), []);
        assert.match(await failure(c.start()), found);
      } else assert.match(await failure(run(scene, p)), found); // its NRI lets plugins validate
      assert.equal(decisionOf(scene, p).decision, "refused");
      const own = await admit(scene, { containers: { main: allocated(uuid(REAL)) } });
      await run(scene, own);
      noted(
        scene,
        "NRI, failures",
        "GPU added by a later plugin",
        engine.isStartRefused ? "refused when it starts" : "refused",
      );
    });

    await step(scene, "with the runtime door as well, nothing is given twice", async (scene) => {
      const p = await admit(scene, { ...GPU_0, handler: "sluice" });
      const c = await run(scene, p);
      await assertHas(scene, c, [0]);
      const [{ before, after } = { before: "" }, ...more] = creations(machine, c.id);
      assert.deepEqual([after, more], [before, []], "the runtime door changes nothing");
      assert.equal(JSON.parse(before).annotations[STAMP], receiptOf(scene, c));
      assert.equal(auditOf(scene, p).filter(({ door }) => door === "nri").length, 1);
      await remove(scene, p);
      assert.deepEqual(sluiced.receipts(), []);
    });

    await step(
      scene,
      "with the runtime door and no sluiced, a pod that asks is refused, and one that does not starts",
      async (scene) => {
        const [p, plain] = [
          await admit(scene, { ...GPU_0, handler: "sluice" }),
          await admit(scene, { containers: { main: {} }, handler: "sluice" }),
        ];
        await killSluiced(scene);
        try {
          assert.match(await failure(run(scene, p)), /E_NO_EVIDENCE: /);
          noted(scene, "NRI, failures", "runtime door too, sluiced away, asks", "refused");
          const c = await run(scene, plain);
          const [{ before, after } = { before: "" }] = creations(machine, c.id);
          assert.equal(after, before);
          await assertHas(scene, c, []);
          noted(scene, "NRI, failures", "runtime door too, sluiced away, asks nothing", "unchanged");
        } finally {
          await sluiced.start();
        }
        await assertHas(scene, await run(scene, p, { attempt: 1 }), [0]);
      },
    );

    await step(
      scene,
      "while sluiced hangs, no pod that asks starts behind the runtime door, and it recovers",
      async (scene) => {
        const p = await admit(scene, { ...GPU_0, handler: "sluice" });
        const registrations = sluiced.registrations();
        sluiced.pause();
        try {
          assert.match(await failure(run(scene, p)), /E_NO_EVIDENCE: |validator plugin 90-sluice failed/);
        } finally {
          sluiced.resume();
        }
        await sluiced.registered(registrations + 1);
        await remove(scene, p);
        const q = await admit(scene, { ...GPU_0, handler: "sluice" });
        const c = await run(scene, q);
        await assertHas(scene, c, [0]);
        assert.deepEqual(sluiced.receipts(), [c.id]);
      },
    );

    await step(
      scene,
      "killed again and again while containers are created, it lets none have what is not its own",
      async (scene) => {
        const seed = 5;
        const chance = random(seed);
        const names = Array.from({ length: 6 }, (_, i) => `c${i}`);
        // The last of each pod has nothing, and asks all the same.
        const containers = Object.fromEntries(names.map((name, i) => [name, i < 5 ? allocated(uuid(i % 2)) : {}]));
        const pods = await Promise.all(
          Array.from({ length: 6 }, (_, i) => admit(scene, { containers, handler: i % 2 === 0 ? "sluice" : "runc" })),
        );
        let isOver = false;
        const tries = pods.map(async (p, n) => {
          for (const [i, name] of names.entries()) {
            const isGuarded = n % 2 === 0;
            const own = i < 5 ? [`nvidia${i % 2}`, "nvidiactl"] : [];
            for (let attempt = 0; attempt < 5; attempt++) {
              const what = `seed ${seed}, pod ${n}, ${name}, attempt ${attempt}`;
              const c = await run(scene, p, { name, attempt, ...ALL }).catch((error: unknown) => {
                assert.ok(error instanceof CriError, `${what}: ${error}`);
                return undefined;
              });
              if (c === undefined) continue;
              const nodes = isGuarded ? nodesAfter(machine, c) : await nodesOf(c);
              // NRI fails open: without the runtime door it may start with nothing.
              if (isGuarded || nodes.length > 0) assert.deepEqual(nodes, own, what);
              if (i === 5) assert.ok(!isGuarded, `${what} asks for what it has not, and starts`);
              if (nodes.length === 0) continue;
              const stamp = isGuarded
                ? configAfter(machine, c).annotations[STAMP]
                : (await specOf(c)).annotations[STAMP];
              assert.equal(stamp, receiptOf(scene, c), what);
              break;
            }
          }
        });
        const creating = Promise.all(tries).finally(() => {
          isOver = true;
        });
        let kills = 0;
        const killing = (async () => {
          for (; !isOver; kills++) {
            await sleep(chance() * 600);
            await sluiced.kill();
            await sleep(chance() * 50);
            await sluiced.start();
          }
        })();
        await Promise.all([creating, killing]);
        assert.ok(kills > 2, `${kills} kills`);
        assert.ok(sluiced.audit().length > 0);
        noted(
          scene,
          "NRI, failures",
          "sluiced killed again and again, 36 containers created",
          "none has another's GPU",
        );
        await Promise.all(pods.map((p) => remove(scene, p)));
        assert.deepEqual(sluiced.receipts(), []);
      },
    );
  });
}

/** config.json as the low-level runtime had it. */
// biome-ignore lint/suspicious/noExplicitAny: a config.json
function configAfter(machine: Machine, { id }: Container): any {
  return JSON.parse(creations(machine, id)[0]?.after ?? "");
}

function nodesAfter(machine: Machine, c: Container): string[] {
  const devices: { path: string }[] = configAfter(machine, c).linux.devices ?? [];
  return devices
    .map(({ path }) => path.slice(5))
    .filter((name) => name.startsWith("nvidia"))
    .sort();
}
