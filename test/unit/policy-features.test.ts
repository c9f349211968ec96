import assert from "node:assert/strict";
import { test } from "node:test";
import { parseConfig } from "../../src/policy/config.part.ts";
import { DEFAULTS, type Settings } from "../../src/policy/config.ts";
import { type Grant, grantRequest } from "../../src/policy/grant.ts";
import { FEATURE_NAMES, type FeatureName } from "../../src/request/features.ts";
import { readRequest } from "../../src/request/request.ts";

function grant(allowed: readonly FeatureName[], env: readonly string[], asked?: string): Grant {
  const annotations = asked === undefined ? {} : { "gpu.sluice.dev": asked };
  const settings: Settings = { ...DEFAULTS, policy: { ...DEFAULTS.policy, features: allowed } };
  const request = readRequest({ process: { env: [...env] }, annotations }, "nvidia.com/gpu");
  return grantRequest(request, settings, (name) => ({ names: [name], parts: [] }));
}

const GPU = "NVIDIA_VISIBLE_DEVICES=0";
const TRUST = "policy.trust = engine: whoever can start containers here may have what they name";

const ASKING: Readonly<Record<FeatureName, readonly [variable: string, device: string]>> = {
  gds: ["NVIDIA_GDS=enabled", "nvidia.com/gds=all"],
  mofed: ["NVIDIA_MOFED=enabled", "nvidia.com/mofed=all"],
  gdrcopy: ["NVIDIA_GDRCOPY=enabled", "nvidia.com/gdrcopy=all"],
  nvswitch: ["NVIDIA_NVSWITCH=enabled", "nvidia.com/nvswitch=all"],
  imex: ["NVIDIA_IMEX_CHANNELS=7", "nvidia.com/imex-channel=7"],
  "mig-config": ["NVIDIA_MIG_CONFIG_DEVICES=all", "nvidia.com/mig=config"],
  "mig-monitor": ["NVIDIA_MIG_MONITOR_DEVICES=all", "nvidia.com/mig=monitor"],
};

test("the settings take the names of all features, and no other", () => {
  const parse = (names: readonly string[]) => parseConfig(`policy.features = ${JSON.stringify(names)}`);
  assert.ok(!("code" in parse(FEATURE_NAMES)));
  assert.ok("code" in parse(["gpu"]));
  assert.deepEqual(Object.keys(ASKING).sort(), [...FEATURE_NAMES].sort());
});

test("each feature is given where the settings have it, by variable and by name", () => {
  for (const [name, [variable, device]] of Object.entries(ASKING) as [FeatureName, [string, string]][]) {
    const because = `policy.features has ${name}; ${TRUST}`;
    const [variableName = ""] = variable.split("=");
    assert.deepEqual(grant([name], [GPU, variable]).devices, [
      { name: "nvidia.com/gpu=0", from: "variable NVIDIA_VISIBLE_DEVICES", grant: TRUST },
      { name: device, from: `variable ${variableName}`, grant: because },
    ]);
    assert.deepEqual(grant([name], [], device).devices, [
      { name: device, from: "annotation gpu.sluice.dev", grant: because },
    ]);
  }
});

test("no feature is given where the settings do not have it, whoever asks", () => {
  for (const [name, [variable, device]] of Object.entries(ASKING) as [FeatureName, [string, string]][]) {
    const others = FEATURE_NAMES.filter((other) => other !== name);
    const [variableName = ""] = variable.split("=");
    const denied = (from: string) => ({
      code: "E_NOT_ALLOWED",
      message: new RegExp(
        `^E_NOT_ALLOWED: ${from} asks for .* \\(${device}\\), which the setting policy\\.features does not allow; ` +
          `add "${name}" to policy\\.features, or remove what asks for it$`,
      ),
    });
    assert.throws(() => grant(others, [GPU, variable]), denied(`variable ${variableName}`), name);
    assert.throws(() => grant(others, [], device), denied("annotation gpu\\.sluice\\.dev"), name);
    assert.throws(
      () => grant(others, [`NVIDIA_VISIBLE_DEVICES=${device}`]),
      denied("variable NVIDIA_VISIBLE_DEVICES"),
      name,
    );
  }
});

test("a feature cannot be had under the name of another vendor of NVIDIA's", () => {
  for (const device of ["k8s.device-plugin.nvidia.com/gds=all", "nvidia.com/mig=0", "nvidia.com/gds=0"]) {
    assert.throws(() => grant([], [], device), { code: "E_NOT_ALLOWED" }, device);
  }
});

test("a variable that asks beside no GPU is not refused: it asks for nothing", () => {
  assert.deepEqual(grant([], ["NVIDIA_GDS=enabled"]).devices, []);
  assert.deepEqual(grant([], ["NVIDIA_GDS=enabled", "NVIDIA_VISIBLE_DEVICES=void"]).devices, []);
});

test("a grant says which capabilities of the driver it is for, and where that is all, nothing", () => {
  assert.deepEqual(grant([], [GPU, "NVIDIA_DRIVER_CAPABILITIES=video"]).capabilities, {
    names: ["video"],
    from: "NVIDIA_DRIVER_CAPABILITIES=video",
  });
  assert.deepEqual(Object.keys(grant([], [GPU, "NVIDIA_DRIVER_CAPABILITIES=all"])), ["devices", "driver"]);
});
