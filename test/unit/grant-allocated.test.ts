import assert from "node:assert/strict";
import { test } from "node:test";
import { openRegistry } from "../../src/cdi/registry.ts";
import { isSameDevice, namesOf } from "../../src/plan/device-names.ts";
import { entitledHere } from "../../src/plan/entitled.ts";
import type { AllocatedClaim, AllocatedDevices, PluginAnswer } from "../../src/policy/allocation.ts";
import { DEFAULTS, type Settings } from "../../src/policy/config.ts";
import { grantAllocated } from "../../src/policy/grant-allocated.ts";
import { readRequest } from "../../src/request/request.ts";
import type { HostName } from "../fixtures/hosts/hosts.ts";
import type { MemorySys } from "../support/memory-files.ts";
import { claim, hostWithSpecs, POD } from "../support/pods.ts";
import { random } from "../support/random.ts";

const made = new Map<HostName, MemorySys>();

/** A fixture host with its specs; read only here, so made once. */
function host(name: HostName): MemorySys {
  const known = made.get(name) ?? hostWithSpecs(name);
  made.set(name, known);
  return known;
}

function allocated(resource: string, ids: readonly string[], answer?: Partial<PluginAnswer>): AllocatedDevices {
  const full = { visible: [], cdiDevices: [], nodes: [], ...answer };
  return { resource, ids, ...(answer === undefined ? {} : { answer: full }) };
}

interface Case {
  readonly on?: HostName | MemorySys;
  /** NVIDIA_VISIBLE_DEVICES */
  readonly visible?: string;
  readonly env?: readonly string[];
  /** The annotation gpu.sluice.dev. */
  readonly ask?: string;
  readonly devices?: readonly AllocatedDevices[];
  readonly claims?: readonly AllocatedClaim[];
  readonly policy?: Partial<Settings["policy"]>;
}

/** What is granted, by name, then what is denied, as `E_CODE name`. */
function grant({ on = "h100x8", visible, env = [], ask, devices = [], claims = [], policy }: Case): string[] {
  const sys = typeof on === "string" ? host(on) : on;
  const registry = openRegistry(sys, ["/etc/cdi", "/var/run/cdi"]);
  const settings = { ...DEFAULTS, policy: { ...DEFAULTS.policy, ...policy } };
  const request = readRequest(
    {
      process: { env: [...(visible === undefined ? [] : [`NVIDIA_VISIBLE_DEVICES=${visible}`]), ...env] },
      annotations: ask === undefined ? {} : { "gpu.sluice.dev": ask },
    },
    "nvidia.com/gpu",
  );
  const { entitled } = entitledHere({ devices, claims }, registry, sys);
  const { grant: given, denied } = grantAllocated(request, settings, POD, entitled, {
    namesOf: (name) => namesOf(registry, name),
    isSame: (one, other) => isSameDevice(registry, one, other),
  });
  return [
    ...given.devices.map(({ name }) => name),
    ...given.driver.map(({ kind }) => `driver of ${kind}`),
    ...denied.map(({ code, what }) => `${code} ${/asks for (.*)$/.exec(what)?.[1]}`),
  ];
}

const GPUS = (host("h100x8").text("/run/cdi/sluice-nvidia.com-gpu.json") ?? "").match(/GPU-[0-9a-f-]{36}/g) as string[];
const UUID = (index: number): string => [...new Set(GPUS)][index] as string;
const gpu = (name: string | number): string => `nvidia.com/gpu=${name}`;
const denied = (name: string | number): string => `E_NOT_ALLOCATED ${gpu(name)}`;
const one = [allocated("nvidia.com/gpu", [UUID(0)])];

test("a GPU that was allocated by its UUID is given by its index and by its UUID, and no other one", () => {
  assert.deepEqual(grant({ visible: "0", devices: one }), [gpu(0)]);
  assert.deepEqual(grant({ visible: UUID(0), devices: one }), [gpu(UUID(0))]);
  assert.deepEqual(grant({ ask: gpu(0), devices: one }), [gpu(0)]);
  assert.deepEqual(grant({ visible: "1", devices: one }), [denied(1)]);
  assert.deepEqual(grant({ visible: UUID(1), devices: one }), [denied(UUID(1))]);
  assert.deepEqual(grant({ visible: "9", devices: one }), [denied(9)]);
});

test("what the plugin answered by index is found by UUID too", () => {
  const devices = [allocated("nvidia.com/gpu", ["ticket"], { visible: ["2"] })];
  assert.deepEqual(grant({ visible: UUID(2), devices }), [gpu(UUID(2))]);
  assert.deepEqual(grant({ visible: UUID(0), devices }), [denied(UUID(0))]);
});

test("who asks for more than was allocated gets what was, and is denied the rest", () => {
  assert.deepEqual(grant({ visible: "0,1", devices: one }), [gpu(0), denied(1)]);
  assert.deepEqual(grant({ visible: "0,1" }), [denied(0), denied(1)]);
});

test("all means all that was allocated, each once; with nothing allocated, nothing", () => {
  assert.deepEqual(grant({ visible: "all", devices: one }), [gpu(UUID(0))]);
  const shares = [allocated("nvidia.com/gpu.shared", [`${UUID(0)}::0`, `${UUID(0)}::3`, `${UUID(4)}::1`])];
  assert.deepEqual(grant({ visible: "all", devices: shares }), [gpu(UUID(0)), gpu(UUID(4))]);
  assert.deepEqual(grant({ visible: "all" }), [denied("all")]);
  assert.deepEqual(grant({ ask: gpu("all"), devices: one }), [gpu(UUID(0))]);
  assert.deepEqual(grant({ ask: "amd.com/gpu=all", devices: one }), ["E_NOT_ALLOCATED amd.com/gpu=all"]);
});

test("a share of a device gives that device, and only that", () => {
  const devices = [allocated("nvidia.com/gpu", [`${UUID(1)}::7`])];
  assert.deepEqual(grant({ visible: "1", devices }), [gpu(1)]);
  assert.deepEqual(grant({ visible: "7", devices }), [denied(7)]);
  assert.deepEqual(grant({ ask: gpu(3), devices: [allocated("nvidia.com/gpu", ["3::1"])] }), [gpu(3)]);
});

test("HAMi's tickets give what its plugin answered, not the card that they seem to name", () => {
  const devices = [allocated("nvidia.com/gpu", [`${UUID(0)}-4`], { visible: [UUID(5)] })];
  assert.deepEqual(grant({ visible: "5", devices }), [gpu(5)]);
  assert.deepEqual(grant({ visible: "0", devices }), [denied(0)]);
  assert.deepEqual(grant({ visible: "0", devices: [allocated("nvidia.com/gpu", [`${UUID(0)}-4`])] }), [denied(0)]);
});

test("a part of a GPU gives neither another part nor the whole", () => {
  const on = "a100-mig-2";
  const devices = [allocated("nvidia.com/mig-1g.5gb", ["0:1"], { visible: ["0:1"] })];
  assert.deepEqual(grant({ on, visible: "0:1", devices }), [gpu("0:1")]);
  for (const other of ["0:0", "1:1", "0"]) assert.deepEqual(grant({ on, visible: other, devices }), [denied(other)]);
  assert.deepEqual(grant({ on, visible: "all", devices }), [gpu("0:1")]);
});

/** A spec as another tool might write it: the whole GPU beside its parts. */
const PARTS = {
  cdiVersion: "0.5.0",
  kind: "nvidia.com/gpu",
  devices: [
    ["0", "/dev/nvidia0"],
    ["0:0", "/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap1", "/dev/nvidia-caps/nvidia-cap2"],
    ["0:1", "/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap3", "/dev/nvidia-caps/nvidia-cap4"],
    ["1", "/dev/nvidia1"],
    ["all", "/dev/nvidia0", "/dev/nvidia1"],
  ].map(([name, ...paths]) => ({ name, containerEdits: { deviceNodes: paths.map((path) => ({ path })) } })),
};
const partsHost = (): MemorySys => hostWithSpecs("empty", { "/etc/cdi/parts.json": JSON.stringify(PARTS) });

test("where only nodes tell what was allocated, the nodes of a part do not give the whole, nor those of two GPUs all", () => {
  const on = partsHost();
  const control = ["/dev/nvidiactl", "/dev/nvidia-uvm"];
  const part = ["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap3", "/dev/nvidia-caps/nvidia-cap4"];
  const devices = (nodes: readonly string[]) => [allocated("nvidia.com/gpu", ["ticket"], { nodes })];
  const mig = devices([...control, ...part]);
  assert.deepEqual(grant({ on, visible: "0:1", devices: mig }), [gpu("0:1")]);
  assert.deepEqual(grant({ on, visible: "0", devices: mig }), [denied(0)]);
  assert.deepEqual(grant({ on, visible: "0:0", devices: mig }), [denied("0:0")]);
  assert.deepEqual(grant({ on, visible: "all", devices: mig }), [gpu("0:1")]);
  const two = devices([...control, "/dev/nvidia0", "/dev/nvidia1"]);
  assert.deepEqual(grant({ on, visible: "0,1", devices: two }), [gpu(0), gpu(1)]);
  assert.deepEqual(grant({ on, visible: "all", devices: two }), [gpu(0), gpu(1)]);
  assert.deepEqual(grant({ on, visible: "0:0", devices: two }), [denied("0:0")]);
  const mixed = devices([...control, ...part, "/dev/nvidia1"]);
  assert.deepEqual(grant({ on, visible: "all", devices: mixed }), [gpu("0:1"), gpu(1)]);
});

test("the whole is not given by its parts, all of them together, and a part not by the whole", () => {
  const on = partsHost();
  const both = [allocated("nvidia.com/gpu", ["0:0", "0:1"])];
  assert.deepEqual(grant({ on, visible: "0", devices: both }), [denied(0)]);
  assert.deepEqual(grant({ on, visible: "0:0", devices: [allocated("nvidia.com/gpu", ["0"])] }), [denied("0:0")]);
});

test("a claim gives the device that it names, under that name, and by the GPU's own name what the claim has", () => {
  const spec = {
    cdiVersion: "0.5.0",
    kind: "k8s.gpu.nvidia.com/claim",
    devices: [
      {
        name: "c1-gpu-0",
        containerEdits: {
          deviceNodes: ["/dev/nvidia2", "/dev/dri/card1", "/dev/dri/renderD128"].map((path) => ({ path })),
        },
      },
    ],
  };
  const on = hostWithSpecs("h100x8", { "/var/run/cdi/claim.json": JSON.stringify(spec) });
  const name = "k8s.gpu.nvidia.com/claim=c1-gpu-0";
  assert.deepEqual(grant({ on, ask: name, claims: [claim(name)] }), [name]);
  assert.deepEqual(grant({ on, visible: "0", claims: [claim(name)] }), [name]);
  assert.deepEqual(grant({ on, visible: "1", claims: [claim(name)] }), [denied(1)]);
  assert.deepEqual(grant({ on, ask: name }), [`E_NOT_ALLOCATED ${name}`]);
  // Another claim's device is another's, although it may be the same GPU.
  assert.deepEqual(grant({ on, ask: name, claims: [claim("k8s.gpu.nvidia.com/claim=c2-gpu-0")] }), [
    `E_NOT_ALLOCATED ${name}`,
  ]);
});

test("another kind's device with the same nodes brings nothing of its own along", () => {
  const evil = {
    cdiVersion: "0.5.0",
    kind: "x.com/debug",
    devices: [
      {
        name: "gpu0",
        containerEdits: {
          deviceNodes: ["/dev/nvidia2", "/dev/dri/card1", "/dev/dri/renderD128"].map((path) => ({ path })),
          mounts: [{ hostPath: "/", containerPath: "/host" }],
        },
      },
    ],
  };
  const on = hostWithSpecs("h100x8", { "/etc/cdi/evil.json": JSON.stringify(evil) });
  assert.deepEqual(grant({ on, ask: "x.com/debug=gpu0", devices: one }), [gpu(UUID(0))]);
});

test("AMD's GPUs and partitions are known by bus, by platform device and by DRM node", () => {
  const on = "mi300";
  const cases: [string, string, string][] = [
    ["amd.com/gpu", "0000:26:00.0", "8"],
    ["amd.com/gpu", "0000:05:00.0", "0"],
    ["amd.com/cpx_nps4", "amdgpu_xcp_0", "1"],
    ["amd.com/cpx_nps4", "amdgpu_xcp_6", "7"],
    ["amd.com/gpu", "card9", "8"],
    ["amd.com/gpu", "renderD136", "8"],
  ];
  for (const [resource, id, index] of cases) {
    const devices = [allocated(resource, [id])];
    assert.deepEqual(grant({ on, ask: `amd.com/gpu=${index}`, devices }), [`amd.com/gpu=${index}`], id);
    assert.deepEqual(grant({ on, ask: "amd.com/gpu=3", devices }), ["E_NOT_ALLOCATED amd.com/gpu=3"], id);
  }
  const devices = [allocated("amd.com/gpu", ["0000:26:00.0"])];
  assert.deepEqual(grant({ on, ask: "amd.com/gpu=5a1b3c7d00002007", devices }), ["amd.com/gpu=5a1b3c7d00002007"]);
  // A BMC's graphics, and what is not there.
  for (const id of ["0000:02:00.0", "0000:99:00.0", "card0", "amdgpu_xcp_99"]) {
    assert.deepEqual(grant({ on, ask: "amd.com/gpu=all", devices: [allocated("amd.com/gpu", [id])] }), [
      "E_NOT_ALLOCATED amd.com/gpu=all",
    ]);
  }
});

test("what AMD's plugin answers, nodes alone, gives the GPU, and /dev/kfd alone gives none", () => {
  const on = "mi300-spx";
  const nodes = ["/dev/kfd", "/dev/dri/card9", "/dev/dri/renderD136"];
  const ask = "amd.com/gpu=all";
  assert.deepEqual(grant({ on, ask, devices: [allocated("amd.com/gpu", ["x"], { nodes })] }), ["amd.com/gpu=1"]);
  assert.deepEqual(grant({ on, ask, devices: [allocated("amd.com/gpu", ["x"], { nodes: ["/dev/kfd"] })] }), [
    `E_NOT_ALLOCATED ${ask}`,
  ]);
});

test("Intel's ids are cards with a share", () => {
  const devices = [allocated("gpu.intel.com/xe", ["card0-3"])];
  assert.deepEqual(grant({ on: "arc", ask: "intel.com/gpu=1", devices }), ["intel.com/gpu=1"]);
  assert.deepEqual(grant({ on: "arc", ask: "intel.com/gpu=0", devices }), ["E_NOT_ALLOCATED intel.com/gpu=0"]);
});

test("a feature needs the setting and a GPU of its vendor", () => {
  const env = ["NVIDIA_GDS=enabled"];
  const gds = "nvidia.com/gds=all";
  const features = ["gds"] as const;
  assert.deepEqual(grant({ visible: "0", env, devices: one, policy: { features } }), [gpu(0), gds]);
  assert.deepEqual(grant({ visible: "0", env, devices: one }), [gpu(0), `E_NOT_ALLOWED ${gds}`]);
  assert.deepEqual(grant({ visible: "0", env, policy: { features } }), [denied(0), `E_NOT_ALLOCATED ${gds}`]);
  const amd = [allocated("amd.com/gpu", ["0"])];
  assert.deepEqual(grant({ ask: gds, devices: amd, policy: { features } }), [`E_NOT_ALLOCATED ${gds}`]);
});

test("the driver's files alone are for containers that were allocated a GPU of that vendor", () => {
  assert.deepEqual(grant({ visible: "none", devices: one }), ["driver of nvidia.com/gpu"]);
  assert.deepEqual(grant({ visible: "none" }), ["E_NOT_ALLOCATED the driver of nvidia.com/gpu"]);
  assert.deepEqual(grant({ visible: "none", devices: [allocated("amd.com/gpu", ["0"])] }), [
    "E_NOT_ALLOCATED the driver of nvidia.com/gpu",
  ]);
});

test("rules narrow what was allocated, under each name of it", () => {
  for (const device of [gpu(0), gpu(UUID(0)), "nvidia.com/*"]) {
    for (const visible of ["0", UUID(0), "all"]) {
      const policy = { deny: [{ namespace: POD.namespace, device }] };
      assert.deepEqual(grant({ visible, devices: one, policy }), [`E_NOT_ALLOWED ${gpu(visible)}`]);
      assert.deepEqual(grant({ visible, devices: one, policy: { deny: [{ namespace: "other", device }] } }).length, 1);
    }
  }
  assert.deepEqual(grant({ visible: "0", devices: one, policy: { allow: [{ device: gpu(1) }] } }), [
    `E_NOT_ALLOWED ${gpu(0)}`,
  ]);
});

test("an allow rule grants nothing", () => {
  assert.deepEqual(grant({ visible: "0", policy: { allow: [{ namespace: "*", device: "*" }] } }), [denied(0)]);
});

test("what was allocated and is in no spec is granted by its very name only", () => {
  const devices = [allocated("nvidia.com/gpu", ["GPU-00000000-0000-0000-0000-000000000000"])];
  assert.deepEqual(grant({ visible: "0", devices }), [denied(0)]);
  const name = "GPU-00000000-0000-0000-0000-000000000000";
  assert.deepEqual(grant({ visible: name, devices }), [gpu(name)]);
});

test("whatever is asked for, nothing but what was allocated is given, and all of it that was asked for", () => {
  const next = random(5);
  const below = (limit: number): number => Math.floor(next() * limit);
  const named = (index: number): string => (below(2) === 0 ? String(index) : UUID(index));
  const id = (index: number): string =>
    [String(index), UUID(index), `${UUID(index)}::1`, gpu(index)][below(4)] as string;
  const some = (): number[] => Array.from({ length: 8 }, (_, i) => i).filter(() => below(3) === 0);
  for (let i = 0; i < 300; i++) {
    const [has, wants] = [some(), some()];
    const asked = wants.map(named);
    const devices = has.length === 0 ? [] : [allocated("nvidia.com/gpu", has.map(id))];
    const isAll = below(4) === 0 || wants.length === 0;
    const result = grant({ visible: isAll ? "all" : asked.join(","), devices });
    const given = result.filter((one) => !one.startsWith("E_"));
    const indices = given.map((name) => {
      const own = name.slice("nvidia.com/gpu=".length);
      return own.startsWith("GPU-") ? Array.from({ length: 8 }, (_, n) => UUID(n)).indexOf(own) : Number(own);
    });
    const expected = isAll ? has : wants.filter((index) => has.includes(index));
    assert.deepEqual(indices.sort(), expected, `${has} allocated, ${isAll ? "all" : asked} asked for`);
    assert.equal(result.length - given.length, isAll ? Number(has.length === 0) : wants.length - expected.length);
  }
});
