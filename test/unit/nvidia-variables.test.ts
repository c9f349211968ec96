import assert from "node:assert/strict";
import { test } from "node:test";
import { isDeviceName } from "../../src/cdi/name.ts";
import type { Config } from "../../src/oci/spec.ts";
import { FEATURE_NAMES, featureOf, isNvidia } from "../../src/request/features.ts";
import { CAPABILITIES, readNvidiaVariables } from "../../src/request/nvidia.ts";
import { type Request, readRequest } from "../../src/request/request.ts";
import { checkRequirements } from "../../src/request/requirements.ts";
import { damage, fuzz } from "../support/fuzz.ts";

const KIND = "nvidia.com/gpu";

/** What a container with these variables asks for, a GPU among it unless they say otherwise. */
function ask(variables: Record<string, string>, annotations: Record<string, string> = {}): Request {
  const all = { ...(Object.keys(annotations).length > 0 ? {} : { NVIDIA_VISIBLE_DEVICES: "0" }), ...variables };
  const env = Object.entries(all).map(([name, value]) => `${name}=${value}`);
  const config: Config = { process: { env: ["PATH=/bin", ...env] }, annotations };
  return readRequest(config, KIND);
}

const NATIVE = { "gpu.sluice.dev": "nvidia.com/gpu=0" };

test("of an environment the variables that begin with NVIDIA_ are found, the last setting of each", () => {
  const env = ["N=1", "NVIDIA=1", "NVIDIA_", "NVIDIA_A", "NVIDIA_A=1", "XNVIDIA_B=1", "NVIDIA_A=2=3", "NVIDIA_C=", ""];
  assert.deepEqual(
    [...readNvidiaVariables(env)],
    [
      ["NVIDIA_A", "2=3"],
      ["NVIDIA_C", ""],
    ],
  );
});

test("NVIDIA_DRIVER_CAPABILITIES takes all or a comma list, and means compute and utility where it says nothing", () => {
  const table: [string, readonly string[] | undefined][] = [
    ["all", undefined],
    ["compute,all", undefined],
    [CAPABILITIES.join(","), undefined],
    ["", ["compute", "utility"]],
    [" , ,", ["compute", "utility"]],
    ["utility", ["utility"]],
    ["utility,compute", ["compute", "utility"]],
    [" video , graphics,video,", ["graphics", "video"]],
    ["compat32,display,ngx", ["compat32", "display", "ngx"]],
  ];
  for (const [value, expected] of table) {
    assert.deepEqual(ask({ NVIDIA_DRIVER_CAPABILITIES: value }).capabilities?.names, expected, value);
  }
  assert.deepEqual(ask({}).capabilities, {
    names: ["compute", "utility"],
    from: "NVIDIA_DRIVER_CAPABILITIES is not set: compute,utility",
  });
  assert.equal(ask({ NVIDIA_DRIVER_CAPABILITIES: "video" }).capabilities?.from, "NVIDIA_DRIVER_CAPABILITIES=video");
});

test("a GPU asked for by its CDI name comes with every capability, unless the variable says which", () => {
  for (const annotations of [NATIVE, { "cdi.k8s.io/x": "nvidia.com/gpu=0" }]) {
    assert.equal(ask({}, annotations).capabilities, undefined);
    assert.equal(ask({ NVIDIA_DRIVER_CAPABILITIES: "" }, annotations).capabilities, undefined);
    assert.deepEqual(ask({ NVIDIA_DRIVER_CAPABILITIES: "compute" }, annotations).capabilities?.names, ["compute"]);
  }
  const extra = { devices: ["nvidia.com/gpu=0"], annotations: {} };
  assert.equal(readRequest({}, KIND, extra).capabilities, undefined);
});

test("a name that the variable gives for a GPU is not a native request", () => {
  assert.deepEqual(ask({ NVIDIA_VISIBLE_DEVICES: "nvidia.com/gpu=0" }).capabilities?.names, ["compute", "utility"]);
  assert.deepEqual(ask({ NVIDIA_VISIBLE_DEVICES: "none" }).capabilities?.names, ["compute", "utility"]);
});

test("an unknown capability is refused, and the known ones are named", () => {
  for (const value of ["Compute", "compute,cuda", "ALL", "compute video", "all,x", "\u0000", "__proto__"]) {
    assert.throws(
      () => ask({ NVIDIA_DRIVER_CAPABILITIES: value }),
      { code: "E_REQUEST_ENV", message: /variable NVIDIA_DRIVER_CAPABILITIES: .*compute, compat32, .*video$/ },
      value,
    );
  }
  assert.throws(() => ask({ NVIDIA_DRIVER_CAPABILITIES: "compute,".repeat(10_000) }), {
    code: "E_REQUEST_ENV",
    message: /80000 characters/,
  });
});

test("where nothing of NVIDIA's is asked for, its variables mean nothing, whatever they hold", () => {
  const variables = {
    NVIDIA_DRIVER_CAPABILITIES: "nonsense",
    NVIDIA_REQUIRE_CUDA: "nonsense",
    NVIDIA_GDS: "enabled",
    NVIDIA_IMEX_CHANNELS: "x",
    NVIDIA_MIG_CONFIG_DEVICES: "x",
  };
  const nothing = { devices: [], driver: [] };
  for (const value of ["", "void"]) {
    assert.deepEqual(ask({ ...variables, NVIDIA_VISIBLE_DEVICES: value }), nothing);
  }
  const foreign = { "gpu.sluice.dev": "amd.com/gpu=0" };
  assert.deepEqual(ask(variables, foreign), {
    devices: [{ name: "amd.com/gpu=0", from: "annotation gpu.sluice.dev" }],
    driver: [],
  });
  assert.deepEqual(Object.keys(ask({ ...variables, NVIDIA_VISIBLE_DEVICES: "amd.com/gpu=0" })), ["devices", "driver"]);
  const env = ["NVIDIA_VISIBLE_DEVICES=none", "NVIDIA_GDS=enabled"];
  assert.deepEqual(readRequest({ process: { env } }, "amd.com/gpu").devices, []);
  // A feature is no GPU, and calls for no other.
  assert.deepEqual(
    ask(variables, { "gpu.sluice.dev": "nvidia.com/nvswitch=all" }).devices.map((device) => device.name),
    ["nvidia.com/nvswitch=all"],
  );
});

/** The devices that variables ask for beside GPU 0. */
function features(variables: Record<string, string>): string[] {
  return ask(variables)
    .devices.map((device) => device.name)
    .filter((name) => name !== "nvidia.com/gpu=0");
}

test("the variables of features ask for their CDI devices", () => {
  const table: [string, string, string[]][] = [
    ["NVIDIA_GDS", "enabled", ["nvidia.com/gds=all"]],
    ["NVIDIA_MOFED", "enabled", ["nvidia.com/mofed=all"]],
    ["NVIDIA_GDRCOPY", "enabled", ["nvidia.com/gdrcopy=all"]],
    ["NVIDIA_NVSWITCH", "enabled", ["nvidia.com/nvswitch=all"]],
    ["NVIDIA_MIG_CONFIG_DEVICES", "all", ["nvidia.com/mig=config"]],
    ["NVIDIA_MIG_MONITOR_DEVICES", "all", ["nvidia.com/mig=monitor"]],
    ["NVIDIA_IMEX_CHANNELS", "0", ["nvidia.com/imex-channel=0"]],
    ["NVIDIA_IMEX_CHANNELS", " 7 ,0,7", ["nvidia.com/imex-channel=7", "nvidia.com/imex-channel=0"]],
    ["NVIDIA_IMEX_CHANNELS", "1048575", ["nvidia.com/imex-channel=1048575"]],
    // What asks for nothing.
    ...["", "Enabled", "true", "1", "disabled", " enabled"].map((value): [string, string, string[]] => [
      "NVIDIA_GDS",
      value,
      [],
    ]),
    ...["", "all", "none", "void"].map((value): [string, string, string[]] => ["NVIDIA_IMEX_CHANNELS", value, []]),
    ...["", "none", "void"].map((value): [string, string, string[]] => ["NVIDIA_MIG_CONFIG_DEVICES", value, []]),
    ["NVIDIA_OTHER", "enabled", []],
  ];
  for (const [variable, value, expected] of table) {
    assert.deepEqual(features({ [variable]: value }), expected, `${variable}=${value}`);
  }
});

test("a feature says which variable asked for it, and comes after the GPUs", () => {
  const { devices } = ask({ NVIDIA_GDS: "enabled", NVIDIA_VISIBLE_DEVICES: "1,nvidia.com/gds=all" });
  assert.deepEqual(devices, [
    { name: "nvidia.com/gpu=1", from: "variable NVIDIA_VISIBLE_DEVICES" },
    { name: "nvidia.com/gds=all", from: "variable NVIDIA_VISIBLE_DEVICES" },
  ]);
  assert.deepEqual(ask({ NVIDIA_MOFED: "enabled" }, NATIVE).devices.at(-1), {
    name: "nvidia.com/mofed=all",
    from: "variable NVIDIA_MOFED",
  });
  assert.deepEqual(ask({ NVIDIA_NVSWITCH: "enabled", NVIDIA_VISIBLE_DEVICES: "none" }).devices, [
    { name: "nvidia.com/nvswitch=all", from: "variable NVIDIA_NVSWITCH" },
  ]);
});

test("a value that such a variable cannot have is refused and named", () => {
  const table: [string, string][] = [
    ...["x", "-1", "01", "1,,2", "1,all", "1048576", "0x1", "1-3", "1.0", "9".repeat(5000), "1\n2"].map(
      (value): [string, string] => ["NVIDIA_IMEX_CHANNELS", value],
    ),
    ["NVIDIA_IMEX_CHANNELS", "1,".repeat(10_000)],
    ["NVIDIA_MIG_CONFIG_DEVICES", "0"],
    ["NVIDIA_MIG_MONITOR_DEVICES", "all,0"],
    ["NVIDIA_MIG_MONITOR_DEVICES", "GPU-1"],
  ];
  for (const [variable, value] of table) {
    assert.throws(
      () => features({ [variable]: value }),
      { code: "E_REQUEST_ENV", message: new RegExp(`variable ${variable}: `) },
      `${variable}=${value}`,
    );
  }
});

test("a device of a feature is known by its class, whichever vendor of NVIDIA's names it", () => {
  const table: [string, string | undefined][] = [
    ["nvidia.com/gds=all", "gds"],
    ["nvidia.com/gds=0", "gds"],
    ["nvidia.com/mofed=all", "mofed"],
    ["k8s.device-plugin.nvidia.com/gdrcopy=all", "gdrcopy"],
    ["nvidia.com/nvswitch=all", "nvswitch"],
    ["nvidia.com/imex-channel=7", "imex"],
    ["nvidia.com/mig=config", "mig-config"],
    ["nvidia.com/mig=monitor", "mig-monitor"],
    ["nvidia.com/mig=other", "mig-config"],
    ["nvidia.com/gpu=all", undefined],
    ["nvidia.com/gpu=gds", undefined],
    ["nvidia.com/mig-1g.5gb=0", undefined],
    ["amd.com/gds=all", undefined],
    ["notnvidia.com/gds=all", undefined],
    ["nvidia.com.evil.org/gds=all", undefined],
  ];
  for (const [name, feature] of table) assert.equal(featureOf(name)?.name, feature, name);
  assert.deepEqual(
    new Set(table.flatMap(([name]) => featureOf(name)?.name ?? [])),
    new Set(["gds", "mofed", "gdrcopy", "nvswitch", "imex", "mig-config", "mig-monitor"]),
  );
  assert.equal(FEATURE_NAMES.length, 7);
  const vendors = ["nvidia.com/gpu", "management.nvidia.com/gpu", "a.b.nvidia.com/gpu"];
  for (const name of vendors) assert.ok(isNvidia(name), name);
  for (const name of ["", "/", "nvidia.com", "xnvidia.com/gpu", "vidia.com/gpu", "amd.com/nvidia.com/gpu"]) {
    assert.ok(!isNvidia(name), name);
  }
});

test("MIG devices are named by index or UUID, and their old names are refused with what to write", () => {
  const uuid = "5ac1a2b3-0000-1111-2222-333344445555";
  assert.deepEqual(
    ask({ NVIDIA_VISIBLE_DEVICES: `0:1,MIG-${uuid}` }).devices.map((device) => device.name),
    ["nvidia.com/gpu=0:1", `nvidia.com/gpu=MIG-${uuid}`],
  );
  assert.throws(() => ask({ NVIDIA_VISIBLE_DEVICES: `0,MIG-GPU-${uuid}/1/0` }), {
    code: "E_REQUEST_ENV",
    message:
      /variable NVIDIA_VISIBLE_DEVICES: "MIG-GPU-5ac1.*\/1\/0" names a MIG device as drivers before 470 did; .*0:1/,
  });
  assert.deepEqual(
    ask({ NVIDIA_VISIBLE_DEVICES: `MIG-GPU-${uuid}` }).devices.map((device) => device.name),
    [`nvidia.com/gpu=MIG-GPU-${uuid}`],
  );
});

test("an environment of thousands of variables is read", () => {
  const env = Array.from({ length: 50_000 }, (_, i) => `NVIDIA_${i}=${"x".repeat(20)}`);
  const request = readRequest({ process: { env: [...env, "NVIDIA_VISIBLE_DEVICES=0"] } }, KIND);
  assert.equal(request.devices.length, 1);
  assert.equal(request.requirements, undefined);
});

test("damaged variables give a request of good names, or a refusal", () => {
  const good: [string, string][] = [
    ["NVIDIA_VISIBLE_DEVICES", "0,0:1,MIG-1,nvidia.com/gpu=1"],
    ["NVIDIA_DRIVER_CAPABILITIES", "compute,utility,video"],
    ["NVIDIA_REQUIRE_CUDA", "cuda>=13.0 brand=tesla,driver>=535,driver<536"],
    ["NVIDIA_REQUIRE_ARCH", "arch>=7.0,brand!=grid"],
    ["NVIDIA_DISABLE_REQUIRE", "false"],
    ["NVIDIA_GDS", "enabled"],
    ["NVIDIA_IMEX_CHANNELS", "0,17,2047"],
    ["NVIDIA_MIG_CONFIG_DEVICES", "all"],
  ];
  let given = 0;
  const refused = fuzz(6100, 1500, (rand, show) => {
    const env = good.map(([name, value]) => {
      const entry = `${name}=${rand() < 0.93 ? value : damage(rand, value)}`;
      return rand() < 0.99 ? entry : damage(rand, entry);
    });
    show(env);
    const request = readRequest({ process: { env } }, KIND);
    for (const { name } of request.devices) assert.ok(isDeviceName(name), name);
    for (const name of request.capabilities?.names ?? []) assert.ok(CAPABILITIES.includes(name), name);
    checkRequirements(request.requirements ?? [], "535.183.01");
    given++;
  });
  assert.ok(refused > 300 && given > 300, `${refused} refused, ${given} given`);
});
