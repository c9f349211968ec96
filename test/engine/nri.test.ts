/** sluiced in front of real engines: a pod gets what the kubelet allocated to it, and nothing else. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { type ContainerOptions, pod } from "../lab/cri.ts";
import { reference } from "../lab/images.ts";
import {
  type Admitted,
  admit,
  allocated,
  assertHas,
  auditOf,
  CLAIM,
  decisionOf,
  ENGINES,
  GPU,
  MIG,
  nodesOf,
  noted,
  REAL,
  refused,
  remove,
  run,
  specOf,
  start,
  step,
  uuid,
  withoutIds,
} from "../lab/pods.ts";

/** What a container asks for, or carries, that was not allocated to it; and the GPUs that it has where that is reported. */
interface Wrong {
  readonly way: string;
  readonly pod: Admitted;
  readonly ask?: Partial<ContainerOptions>;
  /** Of 0 and 1. */
  readonly has?: readonly number[];
  /** Nodes that somebody else has put there. */
  readonly carries?: readonly string[];
}

/** Exactly what was allocated, with the driver; it opens, and another's node does not. */
const HAS = "has it";
const NONE = { main: {} };
const wrongs: readonly Wrong[] = [
  {
    way: "forged, by the pod's annotation",
    pod: { containers: NONE, annotations: { "gpu.sluice.dev/pod": `${GPU}=0` } },
  },
  {
    way: "forged, by the pod's annotation for the container",
    pod: { containers: NONE, annotations: { "gpu.sluice.dev/container.main": `${GPU}=${uuid(1)}` } },
  },
  {
    way: "forged, by the container's annotation",
    pod: { containers: NONE },
    ask: { annotations: { "gpu.sluice.dev": `${GPU}=0` } },
  },
  {
    way: "forged, by CDI's annotation",
    pod: { containers: NONE },
    ask: { annotations: { "cdi.k8s.io/a": `${GPU}=${REAL}` } },
    carries: [`nvidia${REAL}`, "nvidiactl"],
  },
  { way: "forged, by the variable", pod: { containers: NONE }, ask: { env: { NVIDIA_VISIBLE_DEVICES: uuid(0) } } },
  { way: "the image's NVIDIA_VISIBLE_DEVICES=all", pod: { containers: NONE }, ask: { image: reference("hostile") } },
  {
    way: "forged, with the stamp of a plan",
    pod: { containers: NONE },
    ask: { annotations: { "gpu.sluice.dev": `${GPU}=0`, "sluice.dev/plan": "0".repeat(64) } },
  },
  {
    way: "another container's of its pod",
    pod: { containers: { main: allocated(uuid(1)), other: allocated(uuid(0)) } },
    ask: { env: { NVIDIA_VISIBLE_DEVICES: "0" } },
  },
  {
    way: "excess",
    pod: { containers: { main: allocated(uuid(0)) } },
    ask: { env: { NVIDIA_VISIBLE_DEVICES: "0,1" } },
    has: [0],
  },
  {
    way: "a whole GPU, of which it has a MIG device",
    pod: { containers: { main: { devices: { "nvidia.com/mig-1g.10gb": [MIG] } } } },
    ask: { env: { NVIDIA_VISIBLE_DEVICES: "1" } },
  },
  {
    way: "carried, by a hostPath",
    pod: { containers: NONE },
    ask: { mounts: [{ containerPath: "/dev/x", hostPath: `/dev/nvidia${REAL}` }] },
    carries: [],
  },
  {
    way: "carried, by a device of the CRI",
    pod: { containers: NONE },
    ask: { devices: [{ containerPath: `/dev/nvidia${REAL}`, hostPath: `/dev/nvidia${REAL}`, permissions: "rw" }] },
    carries: [`nvidia${REAL}`],
  },
  {
    way: "carried, by CDI_devices of the CRI",
    pod: { containers: NONE },
    ask: { cdiDevices: [`${GPU}=${REAL}`] },
    carries: [`nvidia${REAL}`, "nvidiactl"],
  },
];

/** Ways to be right. */
interface Right {
  readonly way: string;
  readonly pod: Admitted;
  readonly ask?: Partial<ContainerOptions>;
  readonly has: readonly number[];
}

const has = (...ids: string[]) => ({ main: allocated(...ids) });
const claimed = (ask: string): Pick<Right, "pod" | "ask"> => ({
  pod: {
    containers: { main: { claims: ["gpu"] } },
    claims: { gpu: { driver: "gpu.nvidia.com", pool: "node", device: "gpu-1", cdiDevices: [`${CLAIM}=0c9b-gpu-1`] } },
  },
  ask: { annotations: { "gpu.sluice.dev": ask } },
});
const rights: readonly Right[] = [
  { way: "by index", pod: { containers: has(uuid(0)) }, ask: { env: { NVIDIA_VISIBLE_DEVICES: "0" } }, has: [0] },
  { way: "by UUID", pod: { containers: has(uuid(1)) }, ask: { env: { NVIDIA_VISIBLE_DEVICES: uuid(1) } }, has: [1] },
  {
    way: "by `all`, of one",
    pod: { containers: has(uuid(1)) },
    ask: { env: { NVIDIA_VISIBLE_DEVICES: "all" } },
    has: [1],
  },
  {
    way: "by `all`, of two",
    pod: { containers: has(uuid(0), uuid(1)) },
    ask: { env: { NVIDIA_VISIBLE_DEVICES: "all" } },
    has: [0, 1],
  },
  { way: "by the image's `all`", pod: { containers: has(uuid(0)) }, ask: { image: reference("hostile") }, has: [0] },
  {
    way: "by the container's annotation",
    pod: { containers: has(uuid(0)) },
    ask: { annotations: { "gpu.sluice.dev": `${GPU}=0` } },
    has: [0],
  },
  {
    way: "by the pod's annotation for the container, which wins",
    pod: {
      containers: has(uuid(1)),
      annotations: { "gpu.sluice.dev/pod": `${GPU}=0`, "gpu.sluice.dev/container.main": `${GPU}=1` },
    },
    has: [1],
  },
  {
    way: "less than it has",
    pod: { containers: has(uuid(0), uuid(1)) },
    ask: { env: { NVIDIA_VISIBLE_DEVICES: "0" } },
    has: [0],
  },
  {
    way: "of a share",
    pod: { containers: has(`${uuid(0)}::3`) },
    ask: { env: { NVIDIA_VISIBLE_DEVICES: uuid(0) } },
    has: [0],
  },
  {
    way: "by our own plugin's id",
    pod: { containers: has("1") },
    ask: { env: { NVIDIA_VISIBLE_DEVICES: "1" } },
    has: [1],
  },
  { way: "of a claim, by its name", ...claimed(`${CLAIM}=0c9b-gpu-1`), has: [1] },
  { way: "of a claim, by the GPU's index", ...claimed(`${GPU}=1`), has: [1] },
  {
    way: "of a static pod, whose UID is a digest",
    pod: { name: "gpu-test-node", uid: "2f3b0c5e8d7a4f6b9c1d0e2f3a4b5c6d", containers: has(uuid(0)) },
    ask: { env: { NVIDIA_VISIBLE_DEVICES: "all" } },
    has: [0],
  },
];

for (const engine of ENGINES) {
  test(`sluiced and ${engine.name}`, engine.options, async (t) => {
    const scene = await start(t, engine);
    const { sluiced } = scene;

    for (const { way, pod: admitted, ask, has: gpus } of rights) {
      await step(scene, `what was allocated it has, asked for ${way}`, async (scene) => {
        const p = await admit(scene, admitted);
        const c = await run(scene, p, ask);
        await assertHas(scene, c, gpus);
        const [line, ...more] = auditOf(scene, p);
        assert.deepEqual([line?.decision, line?.id, line?.door, more], ["granted", c.id, "nri", []]);
        assert.deepEqual(sluiced.receipts(), [c.id]);
        await remove(scene, p);
        assert.deepEqual(sluiced.receipts(), []);
        noted(scene, "NRI", `allocated, asked for ${way}`, HAS);
      });
    }

    await step(scene, "a MIG device is its own nodes", async (scene) => {
      const p = await admit(scene, { containers: { main: { devices: { "nvidia.com/mig-1g.10gb": [MIG] } } } });
      const c = await run(scene, p, { env: { NVIDIA_VISIBLE_DEVICES: "all" } });
      assert.deepEqual(await nodesOf(c), ["nvidia-caps/nvidia-cap12", "nvidia1", "nvidiactl"]);
      noted(scene, "NRI", "allocated, a MIG device", HAS);
      await remove(scene, p);
    });

    await step(scene, "init container, sidecar and two containers of a pod have each their own", async (scene) => {
      const p = await admit(scene, {
        containers: {
          init: { init: "ends", devices: { [GPU]: [uuid(1)] } },
          side: { init: "sidecar" },
          watch: { init: "sidecar", devices: { [GPU]: [uuid(1)] } },
          first: allocated(uuid(0)),
          second: allocated(uuid(1)),
        },
      });
      const all = { env: { NVIDIA_VISIBLE_DEVICES: "all" } };
      const init = await run(scene, p, { name: "init", ...all });
      await assertHas(scene, init, [1]);
      await init.stop();
      await assertHas(scene, await run(scene, p, { name: "watch", ...all }), [1]);
      await assertHas(scene, await run(scene, p, { name: "first", ...all }), [0]);
      await assertHas(scene, await run(scene, p, { name: "second", ...all }), [1]);
      await refused(scene, p, { name: "side", ...all }, "E_NOT_ALLOCATED");
      await assertHas(scene, await run(scene, p, { name: "side", attempt: 1 }), []);
      noted(scene, "NRI", "allocated, init container and sidecar", HAS);
      await remove(scene, p);
    });

    await step(
      scene,
      "a container that is restarted has the same, also where the kubelet does not answer",
      async (scene) => {
        const p = await admit(scene, { containers: has(uuid(0)), annotations: { "gpu.sluice.dev/pod": `${GPU}=0` } });
        const first = await run(scene, p);
        await first.stop();
        sluiced.kubelet.instead = "hang";
        const second = await run(scene, p, { attempt: 1 });
        await assertHas(scene, second, [0]);
        assert.deepEqual(sluiced.receipts(), [first.id, second.id].sort());
        await first.remove();
        assert.deepEqual(sluiced.receipts(), [second.id]);
        await remove(scene, p);
      },
    );

    await step(
      scene,
      "what the engine's CDI has given by the CRI's CDI_devices is found allocated, and not given twice",
      async (scene) => {
        const p = await admit(scene, {
          containers: { main: allocated(uuid(REAL)), twice: allocated(uuid(REAL)) },
        });
        const nodes = [`nvidia${REAL}`, "nvidiactl"];
        const plain = await run(scene, p, { cdiDevices: [`${GPU}=${REAL}`] });
        assert.deepEqual(await nodesOf(plain), nodes);
        const { decision, given } = decisionOf(scene, p);
        assert.deepEqual([decision, given], ["granted", []]);
        assert.equal((await specOf(plain)).annotations["sluice.dev/plan"], undefined);
        const twice = await run(scene, p, {
          name: "twice",
          cdiDevices: [`${GPU}=${REAL}`],
          annotations: { "gpu.sluice.dev": `${GPU}=${uuid(REAL)}` },
        });
        assert.deepEqual(await nodesOf(twice), nodes);
        const { mounts } = await specOf(twice);
        const destinations = mounts.map((mount: { destination: string }) => mount.destination);
        assert.equal(new Set(destinations).size, destinations.length);
        assert.deepEqual(sluiced.receipts(), [twice.id]);

        const claim = `${CLAIM}=0c9b-gpu-${REAL}`;
        const q = await admit(scene, {
          containers: { main: { claims: ["gpu"] } },
          claims: { gpu: { driver: "gpu.nvidia.com", pool: "node", device: `gpu-${REAL}`, cdiDevices: [claim] } },
        });
        const c = await run(scene, q, { cdiDevices: [claim] });
        assert.deepEqual(await nodesOf(c), nodes);
        assert.equal(decisionOf(scene, q).decision, "granted");
        noted(scene, "NRI", "allocated, given by CRI field `CDI_devices`", "left as it is");
        await remove(scene, p);
      },
    );

    for (const settings of ["", '[policy]\nunallocated = "report"\n']) {
      const isRefused = settings === "";
      for (const { way, pod: admitted, ask = {}, has: gpus = [], carries } of wrongs) {
        await step(scene, `what was not allocated is ${isRefused ? "refused" : "reported"}: ${way}`, async (scene) => {
          sluiced.set(settings);
          const p = await admit(scene, admitted);
          if (isRefused) {
            await refused(scene, p, ask, "E_NOT_ALLOCATED");
            assert.equal(auditOf(scene, p).length, 1);
            noted(scene, "NRI", `not allocated: ${way}`, "refused");
          } else {
            const c = await run(scene, p, ask);
            if (carries === undefined) await assertHas(scene, c, gpus);
            else assert.deepEqual(await nodesOf(c), carries);
            const { decision, id, denied } = decisionOf(scene, p);
            assert.deepEqual([decision, id, denied[0]?.code], ["reported", c.id, "E_NOT_ALLOCATED"]);
            assert.equal(sluiced.receipts().length, gpus.length);
          }
          await remove(scene, p);
        });
      }
    }

    await step(scene, "what another pod was allocated it has not, by whichever name", async (scene) => {
      const other = await admit(scene, { containers: has(uuid(0)) });
      await assertHas(scene, await run(scene, other, { env: { NVIDIA_VISIBLE_DEVICES: "0" } }), [0]);
      const p = await admit(scene, { containers: has(uuid(1)) });
      for (const [attempt, name] of ["0", uuid(0), `${GPU}=0`, `${GPU}=${uuid(0)}`, `1,${uuid(0)}`].entries()) {
        await refused(scene, p, { attempt, env: { NVIDIA_VISIBLE_DEVICES: name } }, "E_NOT_ALLOCATED");
      }
      // It tells of itself what is said of the other.
      const { namespace, name, uid } = other.metadata;
      const labels = { "io.kubernetes.cri.sandbox-namespace": namespace, "io.kubernetes.cri.sandbox-name": name };
      const annotations = { ...labels, "io.kubernetes.cri.sandbox-uid": uid, "gpu.sluice.dev": `${GPU}=0` };
      await refused(scene, p, { attempt: 5, annotations }, "E_NOT_ALLOCATED");
    });

    await step(scene, "what an earlier pod of the same name was allocated, another has not", async (scene) => {
      const name = "stale";
      const old = await admit(scene, { name, containers: has(uuid(0)) });
      await assertHas(scene, await run(scene, old, { env: { NVIDIA_VISIBLE_DEVICES: "0" } }), [0]);
      await remove(scene, old);
      // The kubelet still tells of the old one.
      const p = await pod(scene.t, scene.cri, { name, uid: "00000000-0000-4000-9999-000000000000" });
      await refused(scene, p, { env: { NVIDIA_VISIBLE_DEVICES: "0" } }, "E_NOT_ALLOCATED");
      await remove(scene, p);
    });

    await step(
      scene,
      "a privileged pod, which can open every GPU, is reported, let be or refused as configured",
      async (scene) => {
        // CRI-O gives it all capabilities that the kernel knows, which a container's engine may lack itself.
        const starts = engine.name !== "CRI-O";
        const settings = (value: string) => sluiced.set(`[policy]\nprivileged = "${value}"\n`);
        const privileged = () => admit(scene, { containers: NONE, privileged: true });
        if (starts) {
          const reported = await privileged();
          await run(scene, reported);
          const { decision, privileged: isPrivileged } = decisionOf(scene, reported);
          assert.deepEqual([decision, isPrivileged], ["reported", true]);
          settings("allow");
          const allowed = await privileged();
          await run(scene, allowed);
          assert.deepEqual(auditOf(scene, allowed), []);
        }
        settings("refuse");
        await refused(scene, await privileged(), {}, "E_NOT_ALLOCATED");
      },
    );

    await step(
      scene,
      "rules hold from when they are written, for what was allocated too; a broken file changes nothing",
      async (scene) => {
        const p = await admit(scene, { containers: has(uuid(0)), annotations: { "gpu.sluice.dev/pod": `${GPU}=0` } });
        sluiced.set(`[[policy.deny]]\nnamespace = "def*"\ndevice = "${GPU}=${uuid(0)}"\n`);
        const { details } = await refused(scene, p, {}, "E_NOT_ALLOWED");
        assert.match(details, /policy\.deny/);
        sluiced.set("[policy");
        await refused(scene, p, { attempt: 1 }, "E_NOT_ALLOWED");
        assert.ok(sluiced.lines().some(({ msg }) => msg === "the settings stay as they were"));
        sluiced.set("");
        await assertHas(scene, await run(scene, p, { attempt: 2 }), [0]);
      },
    );

    await step(scene, "where the engine's word counts, a pod has what it asks for", async (scene) => {
      sluiced.set('[policy]\ntrust = "engine"\n');
      const p = await admit(scene, { containers: NONE, annotations: { "gpu.sluice.dev/pod": `${GPU}=1` } });
      const c = await run(scene, p);
      await assertHas(scene, c, [1]);
      assert.deepEqual(sluiced.receipts(), [c.id]);
    });

    await step(
      scene,
      "a container that asks for nothing is what it is without sluiced, also where the kubelet does not answer",
      async (scene) => {
        const specs: unknown[] = [];
        const registrations = sluiced.registrations();
        for (const isAsked of [true, false]) {
          if (!isAsked) await sluiced.stop();
          sluiced.kubelet.instead = "hang";
          const p = await admit(scene, { name: "plain", containers: NONE });
          const c = await run(scene, p, { env: { A: "b" }, annotations: { "example.com/a": "b" } });
          specs.push(await withoutIds(p, c));
          if (isAsked) assert.deepEqual(auditOf(scene, p), []);
          await remove(scene, p);
          if (isAsked) assert.equal(sluiced.registrations(), registrations);
        }
        await sluiced.start();
        assert.deepEqual(specs[0], specs[1]);
        noted(scene, "NRI", "nothing asked", "as without sluiced");
      },
    );

    await step(
      scene,
      "while the kubelet does not answer, or is away, a pod that asks is refused, and starts once it is back",
      async (scene) => {
        const { kubelet } = sluiced;
        const registrations = sluiced.registrations();
        kubelet.instead = "hang";
        const p = await admit(scene, { containers: has(uuid(0)), annotations: { "gpu.sluice.dev/pod": `${GPU}=0` } });
        await refused(scene, p, {}, "E_NO_EVIDENCE");
        assert.equal(sluiced.registrations(), registrations, "the engine has not cut us off");
        kubelet.kill();
        kubelet.instead = undefined;
        await refused(scene, p, { attempt: 1 }, "E_NO_EVIDENCE");
        await kubelet.start();
        await assertHas(scene, await run(scene, p, { attempt: 2 }), [0]);
      },
    );
  });
}
