import assert from "node:assert/strict";
import { test } from "node:test";
import type { ContainerEdits } from "../../src/cdi/spec.ts";
import type { Capability } from "../../src/host/driver.ts";
import { formatOrigin, originPath } from "../../src/host/origin.ts";
import { readBundle } from "../../src/oci/bundle.ts";
import type { Config } from "../../src/oci/spec.ts";
import { forCapabilities } from "../../src/plan/capabilities.ts";
import { inject, planFor } from "../../src/plan/inject.ts";
import { openMachine } from "../../src/plan/machine.ts";
import type { Plan } from "../../src/plan/plan.ts";
import { CAPABILITIES } from "../../src/request/nvidia.ts";
import { char, dir, type MemorySys, memory } from "../support/memory-files.ts";

const LIB = "/usr/lib";
const bind = (path: string) => ({ hostPath: path, containerPath: path, options: ["ro", "rbind"] });

/** A driver with a file for each capability, one for two of them, and one for all containers. */
const COMMON: ContainerEdits = {
  env: ["NVIDIA_VISIBLE_DEVICES=void"],
  deviceNodes: [{ path: "/dev/nvidiactl" }, { path: "/dev/nvidia-modeset" }],
  mounts: [
    bind(`${LIB}/libcuda.so.1`),
    bind(`${LIB}/libnvidia-ml.so.1`),
    bind(`${LIB}/libnvcuvid.so.1`),
    bind(`${LIB}/libEGL_nvidia.so.0`),
    bind(`${LIB}/libnvidia-ngx.so.1`),
    bind(`${LIB}32/libcuda.so.1`),
    bind("/run/nvidia-persistenced/socket"),
  ],
  hooks: [{ hookName: "createContainer", path: "/usr/bin/sluice", args: ["sluice", "cdi-hook"] }],
};
const TAGS: Readonly<Record<Capability, readonly string[]>> = {
  compute: [`${LIB}/libcuda.so.1`],
  compat32: [`${LIB}32/libcuda.so.1`],
  display: ["/dev/nvidia-modeset", `${LIB}/libEGL_nvidia.so.0`],
  graphics: ["/dev/nvidia-modeset", `${LIB}/libEGL_nvidia.so.0`, "/dev/dri/renderD128", "/not/in/the/spec"],
  ngx: [`${LIB}/libnvidia-ngx.so.1`],
  utility: [`${LIB}/libnvidia-ml.so.1`],
  video: [`${LIB}/libnvcuvid.so.1`],
};
const SPEC = {
  cdiVersion: "0.5.0",
  kind: "nvidia.com/gpu",
  devices: [
    { name: "0", containerEdits: { deviceNodes: [{ path: "/dev/nvidia0" }, { path: "/dev/dri/renderD128" }] } },
  ],
  containerEdits: COMMON,
};
const PATH = "/var/run/cdi/sluice-nvidia.com-gpu.json";

const pathsOf = (edits: ContainerEdits) => [
  ...(edits.deviceNodes ?? []).map((node) => node.path),
  ...(edits.mounts ?? []).map((mount) => mount.containerPath),
];
const allPaths = (plan: Plan | undefined) => plan?.edits.flatMap((planned) => pathsOf(planned.edits)) ?? [];

/** In every container. */
const ALWAYS = ["/dev/nvidiactl", "/run/nvidia-persistenced/socket"];

test("edits are narrowed to what belongs to a wanted capability, or to none", () => {
  const table: [Capability[], string[], Capability[]][] = [
    [[], [], ["compat32", "compute", "display", "graphics", "ngx", "utility", "video"]],
    [
      ["compute", "utility"],
      [`${LIB}/libcuda.so.1`, `${LIB}/libnvidia-ml.so.1`],
      ["compat32", "display", "graphics", "ngx", "video"],
    ],
    // What belongs to both display and graphics comes with either.
    [
      ["display"],
      ["/dev/nvidia-modeset", `${LIB}/libEGL_nvidia.so.0`],
      ["compat32", "compute", "ngx", "utility", "video"],
    ],
    [
      ["graphics", "compat32"],
      ["/dev/nvidia-modeset", `${LIB}/libEGL_nvidia.so.0`, `${LIB}32/libcuda.so.1`],
      ["compute", "ngx", "utility", "video"],
    ],
    [[...CAPABILITIES], pathsOf(COMMON).filter((path) => !ALWAYS.includes(path)), []],
  ];
  for (const [wanted, paths, without] of table) {
    const before = JSON.stringify(COMMON);
    const narrowed = forCapabilities(COMMON, TAGS, new Set(wanted));
    assert.deepEqual(pathsOf(narrowed.edits).sort(), [...ALWAYS, ...paths].sort(), wanted.join());
    assert.deepEqual(narrowed.without, without, wanted.join());
    const { env, hooks } = narrowed.edits;
    assert.deepEqual({ env, hooks }, { env: COMMON.env, hooks: COMMON.hooks }, wanted.join());
    assert.equal(JSON.stringify(COMMON), before);
  }
});

test("edits of which nothing is tagged stay as they are, whatever is wanted", () => {
  assert.deepEqual(forCapabilities(COMMON, {}, new Set()), { edits: COMMON, without: [] });
  assert.deepEqual(forCapabilities({ env: ["A=b"] }, TAGS, new Set()), { edits: { env: ["A=b"] }, without: [] });
  assert.deepEqual(forCapabilities({}, TAGS, new Set()), { edits: {}, without: [] });
});

test("every capability that the variable takes is one that drivers' files have, and the other way round", () => {
  assert.deepEqual([...CAPABILITIES].sort(), Object.keys(TAGS).sort());
});

/** A machine with that driver; `isOurs` puts the file beside the spec that says what belongs to which capability. */
function machine(isOurs = true): MemorySys {
  const sys = memory({
    [PATH]: JSON.stringify(SPEC),
    "/dev/nvidiactl": char(195, 255),
    "/dev/nvidia-modeset": char(195, 254),
    "/dev/nvidia0": char(195, 0),
    "/dev/dri/renderD128": char(226, 128),
    "/sys/module/nvidia/version": "580.65.06\n",
    "/run/sluice": dir(),
  });
  if (isOurs) {
    const origin = {
      facts: [],
      glance: { places: [], stamps: "" },
      options: { hook: "", params: "", features: [] },
      capabilities: TAGS,
    };
    sys.put(originPath(PATH), formatOrigin(origin, sys.stat(PATH)?.stamp ?? ""));
  }
  return sys;
}

function visible(...variables: string[]): Config {
  return { process: { env: ["NVIDIA_VISIBLE_DEVICES=0", ...variables] } };
}

test("a plan has exactly the paths of the capabilities that were asked for, and says what it left out and why", () => {
  const table: [Config, string[], string][] = [
    [
      visible("NVIDIA_DRIVER_CAPABILITIES=compute,video"),
      ["/dev/nvidia0", `${LIB}/libcuda.so.1`, `${LIB}/libnvcuvid.so.1`],
      ", without compat32, display, graphics, ngx, utility (NVIDIA_DRIVER_CAPABILITIES=compute,video)",
    ],
    [
      visible(),
      ["/dev/nvidia0", `${LIB}/libcuda.so.1`, `${LIB}/libnvidia-ml.so.1`],
      ", without compat32, display, graphics, ngx, video (NVIDIA_DRIVER_CAPABILITIES is not set: compute,utility)",
    ],
    [
      visible("NVIDIA_DRIVER_CAPABILITIES=graphics"),
      ["/dev/nvidia0", "/dev/dri/renderD128", "/dev/nvidia-modeset", `${LIB}/libEGL_nvidia.so.0`],
      ", without compat32, compute, ngx, utility, video (NVIDIA_DRIVER_CAPABILITIES=graphics)",
    ],
    [
      { process: { env: ["NVIDIA_VISIBLE_DEVICES=none", "NVIDIA_DRIVER_CAPABILITIES=utility"] } },
      [`${LIB}/libnvidia-ml.so.1`],
      ", without compat32, compute, display, graphics, ngx, video (NVIDIA_DRIVER_CAPABILITIES=utility)",
    ],
  ];
  for (const [config, paths, note] of table) {
    const plan = planFor(openMachine(machine()), config);
    assert.deepEqual(allPaths(plan).sort(), [...ALWAYS, ...paths].sort(), note);
    const [common] = plan?.edits ?? [];
    assert.ok(common?.reason.endsWith(note), common?.reason);
  }
  const device = planFor(openMachine(machine()), visible())?.edits[1];
  assert.equal(
    device?.reason,
    "device nvidia.com/gpu=0, asked for by variable NVIDIA_VISIBLE_DEVICES, without graphics " +
      "(NVIDIA_DRIVER_CAPABILITIES is not set: compute,utility)",
  );
});

test("all of the driver is given where all is asked for, by a CDI name or by the variable", () => {
  const everything = [...pathsOf(COMMON), "/dev/nvidia0", "/dev/dri/renderD128"].sort();
  for (const config of [
    { annotations: { "gpu.sluice.dev": "nvidia.com/gpu=0" } },
    visible("NVIDIA_DRIVER_CAPABILITIES=all"),
    visible(`NVIDIA_DRIVER_CAPABILITIES=${CAPABILITIES.join(",")}`),
  ]) {
    const plan = planFor(openMachine(machine()), config);
    assert.deepEqual(allPaths(plan).sort(), everything);
    assert.ok(plan?.edits.every((planned) => !planned.reason.includes("without")));
  }
});

test("a spec of another tool, or one that was changed since Sluice wrote it, is given whole", () => {
  const everything = [...pathsOf(COMMON), "/dev/nvidia0", "/dev/dri/renderD128"].sort();
  const changed = machine();
  changed.overwrite(PATH, `${JSON.stringify(SPEC)}\n`);
  for (const sys of [machine(false), changed]) {
    const plan = planFor(openMachine(sys), visible("NVIDIA_DRIVER_CAPABILITIES=utility"));
    assert.deepEqual(allPaths(plan).sort(), everything);
    assert.ok(plan?.edits.every((planned) => !planned.reason.includes("without")));
  }
});

test("a node that is left out need not be there", () => {
  const sys = machine();
  sys.remove("/dev/dri/renderD128");
  assert.ok(planFor(openMachine(sys), visible()) !== undefined);
  assert.throws(() => planFor(openMachine(sys), visible("NVIDIA_DRIVER_CAPABILITIES=graphics")), {
    code: "E_CDI_DEVICE_NODE",
    message: /renderD128/,
  });
});

test("a kept plan is for its own capabilities", () => {
  const sys = machine();
  const start = (config: Config) => {
    sys.clock += 10_000;
    sys.put("/b/config.json", JSON.stringify(config));
    inject(openMachine(sys), readBundle(sys, "/b"), { id: "c", door: "runtime", runtimeRoot: "" });
    return sys.text("/b/config.json") ?? "";
  };
  const wanted = ["compute", "graphics", "all", "utility,video"].map((names) =>
    visible(`NVIDIA_DRIVER_CAPABILITIES=${names}`),
  );
  const first = wanted.map(start);
  assert.equal(new Set(first).size, 4);
  for (let i = 0; i < 2; i++) assert.deepEqual(wanted.map(start), first);
  const fresh = (config: Config) => {
    for (const { name } of sys.list("/run/sluice/plans") ?? []) sys.unlink(`/run/sluice/plans/${name}`);
    return start(config);
  };
  assert.deepEqual(wanted.map(fresh), first);
  assert.ok(first[0]?.includes("libcuda") && !first[0].includes("libEGL"));
  assert.ok(first[1]?.includes("libEGL") && !first[1].includes("libcuda"));
});

test("an image's demands are held against the driver that is loaded, before anything is given", () => {
  const demand = (value: string, sys = machine()) =>
    planFor(openMachine(sys), visible(`NVIDIA_REQUIRE_CUDA=${value}`, "NVIDIA_DRIVER_CAPABILITIES=all"));
  assert.ok(demand("cuda>=13.0") !== undefined);
  assert.throws(() => demand("cuda>=13.1"), {
    code: "E_REQUIREMENT",
    message: /needs cuda>=13\.1 \(variable NVIDIA_REQUIRE_CUDA\), and the driver 580\.65\.06 supports CUDA 13\.0; /,
  });
  assert.throws(() => demand("cuda"), { code: "E_REQUEST_ENV" });
  // As the module of old drivers tells its version.
  const old = machine();
  old.remove("/sys/module/nvidia/version");
  old.put(
    "/proc/driver/nvidia/version",
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13\nGCC version:  gcc version 9.3.0\n",
  );
  assert.throws(() => demand("cuda>=12", old), {
    code: "E_REQUIREMENT",
    message: /the driver 470\.57\.02 .*CUDA 11\.4/,
  });
  // Without a driver nothing is known, and the nodes decide.
  const none = machine();
  none.remove("/sys/module/nvidia/version");
  assert.ok(demand("cuda>=99", none) !== undefined);
});

test("a demand is checked also where the plan is kept", () => {
  const sys = machine();
  const config = visible("NVIDIA_REQUIRE_DRIVER=driver<590");
  for (let i = 0; i < 3; i++) {
    sys.clock += 10_000;
    planFor(openMachine(sys), config);
  }
  assert.equal(sys.list("/run/sluice/plans")?.length, 1);
  sys.put("/sys/module/nvidia/version", "590.48.01\n");
  sys.clock += 10_000;
  assert.throws(() => planFor(openMachine(sys), config), { code: "E_REQUIREMENT" });
});

test("a feature that the settings allow is in the plan with its own reason", () => {
  const sys = machine();
  sys.put(
    "/var/run/cdi/sluice-nvidia.com-gds.json",
    JSON.stringify({
      cdiVersion: "0.5.0",
      kind: "nvidia.com/gds",
      devices: [{ name: "all", containerEdits: { deviceNodes: [{ path: "/dev/nvidia-fs0" }] } }],
    }),
  );
  sys.put("/dev/nvidia-fs0", char(507, 0));
  const config = visible("NVIDIA_GDS=enabled");
  assert.throws(() => planFor(openMachine(sys), config), {
    code: "E_NOT_ALLOWED",
    message: /variable NVIDIA_GDS asks for GPUDirect Storage .* policy\.features/,
  });
  sys.put("/etc/sluice/config.toml", 'policy.features = ["gds"]\n');
  const plan = planFor(openMachine(sys), config);
  assert.ok(allPaths(plan).includes("/dev/nvidia-fs0"));
  assert.equal(plan?.edits.at(-1)?.reason, "device nvidia.com/gds=all, asked for by variable NVIDIA_GDS");
  assert.match(plan?.devices.at(-1)?.grant ?? "", /^policy\.features has gds; policy\.trust = engine/);
  // Where the machine has no such thing, the container does not start without it.
  sys.remove("/var/run/cdi/sluice-nvidia.com-gds.json");
  assert.throws(() => planFor(openMachine(sys), config), {
    code: "E_CDI_UNKNOWN_DEVICE",
    message: /nvidia\.com\/gds=all/,
  });
});
