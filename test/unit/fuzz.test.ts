/*
 * The property behind every parser of what others wrote: a value, or a refusal with a code and one printable line. Never
 * another error, never a value that is not what the text says. Bounded and seeded: a failure names its seed.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { parseAnnotations as parseCdiAnnotations } from "../../src/cdi/annotations.ts";
import { resolveDeviceNodes } from "../../src/cdi/edits.ts";
import type { SpecFile } from "../../src/cdi/load.ts";
import { deviceNameProblem, isDeviceName, kindProblem, parseDeviceName } from "../../src/cdi/name.ts";
import { problemError } from "../../src/cdi/problem.ts";
import { checkSpecFile } from "../../src/cdi/read.part.ts";
import { openRegistry, type Registry } from "../../src/cdi/registry.ts";
import type { ContainerEdits, Spec } from "../../src/cdi/spec.ts";
import { openIndex } from "../../src/cdi/spec-index.ts";
import { checkSpec } from "../../src/cdi/validate.part.ts";
import { parseYaml } from "../../src/cdi/yaml.part.ts";
import { parseAnnotations, parseOptions, UsageError } from "../../src/cli/options.ts";
import { applyEdits } from "../../src/oci/apply.ts";
import { readBundle } from "../../src/oci/bundle.ts";
import { parseCommandLine } from "../../src/oci/cmdline.ts";
import { patchJson } from "../../src/oci/lossless.ts";
import { missingEdits } from "../../src/oci/missing.part.ts";
import type { Config } from "../../src/oci/spec.ts";
import { inject, STAMP } from "../../src/plan/inject.ts";
import { openMachine } from "../../src/plan/machine.ts";
import { Receipts } from "../../src/plan/receipt.ts";
import { loadSettings } from "../../src/policy/config.ts";
import { readAskAnnotation } from "../../src/request/ask.ts";
import { readVisibleDevices } from "../../src/request/nvidia.ts";
import { parseQuantity } from "../../src/request/quantity.ts";
import { readRequest, wordsOf } from "../../src/request/request.ts";
import { printable, quote, SluiceError } from "../../src/sys/error.ts";
import { FULL } from "../support/cdi-corpus.ts";
import { below, checkRefusal, damage, damageData, fuzz, pick } from "../support/fuzz.ts";
import { char, dir, file, type MemorySys, memory } from "../support/memory-files.ts";

/** For a long run by hand: how many times the cases that CI runs. */
const SCALE = 1;

const NAMES = ["nvidia.com/gpu=0", "a/b=c", "v_e-n.d0r/c_l-a.s5=0_a-b.c:d", "nvidia.com/gpu=all", "nvidia.com/gpu"];

/** Plain YAML of a spec: as `JSON.stringify`, but in block style with few quotes. */
function yamlOf(value: unknown, indent = ""): string {
  if (Array.isArray(value)) {
    return value.map((item) => `\n${indent}- ${yamlOf(item, `${indent}  `).trimStart()}`).join("") || "[]";
  }
  if (typeof value === "object" && value !== null) {
    const members = Object.entries(value).map(
      ([key, item]) => `\n${indent}${/^\w+$/.test(key) ? key : JSON.stringify(key)}: ${yamlOf(item, `${indent}  `)}`,
    );
    return members.join("") || "{}";
  }
  return typeof value === "string" && /^[\w/.-]*[a-z][\w/.-]*$/.test(value) ? value : JSON.stringify(value);
}

const JSON_SPEC = JSON.stringify(FULL, null, 1);
const YAML_SPEC = yamlOf(FULL).trimStart();

test("a device's name is taken or refused, and what is taken is what was written", () => {
  const refused = fuzz(1000, 800 * SCALE, (rand, show) => {
    const text = damage(rand, pick(rand, NAMES));
    show(text);
    const valid = isDeviceName(text);
    if (valid) {
      assert.match(text, /^[A-Za-z0-9_.-]+\/[A-Za-z0-9_.-]+=[A-Za-z0-9_.:-]+$/);
      assert.equal(kindProblem(text.slice(0, text.indexOf("="))), undefined);
      assert.equal(deviceNameProblem(text.slice(text.indexOf("=") + 1)), undefined);
    } else {
      assert.throws(() => parseDeviceName(text), { code: "E_CDI_NAME" });
    }
    const { kind, vendor, class: family, name } = parseDeviceName(text);
    assert.deepEqual([`${kind}=${name}`, `${vendor}/${family}`, valid], [text, kind, true]);
  });
  assert.ok(refused > 400 * SCALE && refused < 800 * SCALE, `${refused} refused`);
});

test("whatever stands in annotations and variables gives devices with good names, or a refusal", () => {
  const ask = ["nvidia.com/gpu=0,mode=limiter,memory=8Gi,cores=30", "nvidia.com/gpu,count=2", "a/b=c,mode=exclusive"];
  const visible = ["0", "all", "none", "void", "0,1", "GPU-8f1d,nvidia.com/gpu=1", "MIG-1,a/b=c"];
  const keys = [
    "gpu.sluice.dev",
    "gpu.sluice.dev/pod",
    "gpu.sluice.dev/container.web",
    "gpu.sluice.dev/container.\u001b[2J",
    "cdi.k8s.io/x_1",
    "cdi.k8s.io/\u001b[2J",
    "io.kubernetes.cri.container-name",
    "io.kubernetes.cri.container-type",
    "__proto__",
  ];
  let given = 0;
  const refused = fuzz(2000, 1200 * SCALE, (rand, show) => {
    const members = Array.from({ length: 1 + below(rand, 3) }, () => {
      const key = rand() < 0.8 ? pick(rand, keys) : damage(rand, pick(rand, keys));
      const good = key.startsWith("io.") ? pick(rand, ["web", "\u001b[2J", "sandbox"]) : pick(rand, [...NAMES, ...ask]);
      return `${JSON.stringify(key)}:${JSON.stringify(rand() < 0.4 ? good : damage(rand, good))}`;
    });
    const env = [
      "A=b",
      `NVIDIA_VISIBLE_DEVICES=${rand() < 0.3 ? pick(rand, visible) : damage(rand, pick(rand, visible))}`,
    ];
    // As they come from a file: with a key __proto__, and with members that hide each other.
    const annotations = JSON.parse(`{${members.join(",")}}`) as Record<string, string>;
    show({ annotations, env });
    const request = readRequest({ annotations, process: { env } }, "nvidia.com/gpu");
    for (const device of request.devices) assert.ok(isDeviceName(device.name), device.name);
    assert.equal(new Set(request.devices.map((device) => device.name)).size, request.devices.length);
    if (request.devices.length > 0) given++;
  });
  assert.ok(refused > 300 * SCALE && given > 100 * SCALE, `${refused} refused, ${given} given`);
});

test("containers that ask in the same words ask for the same, and others are told apart", () => {
  const words = ["nvidia.com/gpu=0", "0", "1", "none", "sandbox", "a", "NVIDIA_A=1", "gpu.sluice.dev", "1:0;"];
  const keys = ["gpu.sluice.dev", "gpu.sluice.dev/pod", "gpu.sluice.dev/container.a", "cdi.k8s.io/a", "other"];
  const read = (config: Config): string => {
    try {
      return JSON.stringify(readRequest(config, "nvidia.com/gpu"));
    } catch (thrown) {
      if (!(thrown instanceof SluiceError)) throw thrown;
      return thrown.message;
    }
  };
  const known = new Map<string, string>();
  let again = 0;
  fuzz(5000, 6000 * SCALE, (rand, show) => {
    const annotations: Record<string, string> = {};
    for (let i = below(rand, 3); i > 0; i--) annotations[pick(rand, keys)] = pick(rand, words);
    if (below(rand, 2) === 0) annotations["io.kubernetes.cri.container-name"] = pick(rand, words);
    if (below(rand, 4) === 0) annotations["io.kubernetes.cri.container-type"] = pick(rand, ["container", "sandbox"]);
    const env = ["PATH=/bin", "OTHER=1"].slice(below(rand, 3));
    for (let i = below(rand, 2); i > 0; i--) env.push(`NVIDIA_VISIBLE_DEVICES=${pick(rand, words)}`);
    const config = { annotations, process: { env } };
    show(config);
    const said = wordsOf(config);
    const before = known.get(said);
    if (before !== undefined) again++;
    assert.equal(read(config), before ?? read(config));
    known.set(said, read(config));
  });
  assert.ok(again > 1000 * SCALE, `${again} again`);
  const outcomes = new Set(known.values()).size;
  assert.ok(outcomes > 30, `${outcomes} outcomes`);
});

test("each reader of a request by itself gives good names, or a refusal", () => {
  fuzz(4000, 600 * SCALE, (rand, show) => {
    const text = damage(
      rand,
      `${pick(rand, NAMES)},${pick(rand, ["mode=mps", "cores=5", "count=2", pick(rand, NAMES)])}`,
    );
    show(text);
    const readers = [
      () => readAskAnnotation("gpu.sluice.dev", text).devices,
      () => readVisibleDevices(new Map([["NVIDIA_VISIBLE_DEVICES", text]]), "nvidia.com/gpu") ?? [],
      () => parseCdiAnnotations({ "cdi.k8s.io/x": text }).flatMap((request) => request.devices),
    ];
    for (const name of pick(rand, readers)()) assert.ok(name === "driver" || isDeviceName(name), name);
  });
});

test("a quantity is a whole number that a double holds, or none", () => {
  let numbers = 0;
  fuzz(5000, 500 * SCALE, (rand, show) => {
    const text = damage(rand, pick(rand, ["8Gi", "500M", "1.5e9", "0.5Ki", "100m", "+3", "1E-2"]));
    show(text);
    const value = parseQuantity(text);
    if (Number.isNaN(value)) return;
    numbers++;
    assert.ok(Number.isSafeInteger(value) && value >= 0, `${value}`);
  });
  assert.ok(numbers > 20 * SCALE, `${numbers} numbers`);
});

test("no command line makes its parsers fail other than by saying how it is used", () => {
  const words = [
    ..."--root /r --log=/l --log-format json -b /x --bundle --bundle= -bfoo --config c -f --force --no-pivot -- - --help".split(
      " ",
    ),
    ..."create run restore delete state kill id 9 --json --device nvidia.com/gpu=0 --annotation a=b =x --cdi-dir".split(
      " ",
    ),
    "",
    "\u001b[2J",
    "--__proto__",
    "--constructor=x",
  ];
  fuzz(6000, 800 * SCALE, (rand, show) => {
    const args = Array.from({ length: below(rand, 8) }, () =>
      rand() < 0.8 ? pick(rand, words) : damage(rand, pick(rand, words)),
    );
    show(args);
    const { help, lasting, ...line } = parseCommandLine(args);
    for (const flag of [help, lasting]) assert.ok(flag === undefined || flag === true);
    for (const value of Object.values(line)) assert.equal(typeof value, "string");
    if (line.command !== undefined) assert.ok(args.includes(line.command));
    try {
      const parsed = parseOptions(args, {
        root: "one",
        json: "flag",
        device: "many",
        annotation: "many",
        bundle: "one",
      });
      parseAnnotations(parsed.many("annotation"));
      for (const name of ["__proto__", "constructor"])
        assert.deepEqual([parsed.flag(name), parsed.many(name)], [false, []]);
    } catch (thrown) {
      if (!(thrown instanceof UsageError)) throw thrown;
      checkRefusal("E_USAGE", thrown.message);
    }
  });
});

/** JSON of a container's configuration that has a bit of everything that edits touch. */
const CONFIG = JSON.stringify(
  {
    ociVersion: "1.2.0",
    process: {
      user: { uid: 1000, gid: 1000, additionalGids: [1, 44] },
      env: ["PATH=/bin", "A=old", "DRIVER"],
      rlimits: [{ type: "RLIMIT_NOFILE", hard: 12345, soft: 1024 }],
    },
    mounts: [
      { destination: "/proc", type: "proc", source: "proc" },
      { destination: "/usr/lib/x.so", source: "/old", options: ["rbind", "ro"], "x-more": [1, { a: null }] },
    ],
    hooks: { prestart: [{ path: "/bin/hook", args: ["hook"] }], poststop: null },
    annotations: { "gpu.sluice.dev": "x.com/gpu=1", other: "é\n😀" },
    linux: {
      devices: [{ path: "/dev/gpu1", type: "c", major: 1, minor: 3 }],
      resources: { devices: [{ allow: false, access: "rwm" }], memory: { limit: 9007199254740992 } },
      namespaces: [{ type: "mount" }, { type: "user" }],
    },
  },
  null,
  1,
);

const EDITS: ContainerEdits = {
  env: ["A=new", "B=c"],
  deviceNodes: [{ path: "/dev/gpu1", hostPath: "/dev/gpu1", type: "c", major: 240, minor: 1, fileMode: 0o660 }],
  mounts: [
    { hostPath: "/lib/x.so", containerPath: "/usr/lib/x.so", options: ["ro", "rbind"] },
    { hostPath: "/lib/y.so", containerPath: "/y.so" },
  ],
  hooks: [{ hookName: "prestart", path: "/bin/hook", args: ["hook", "x"] }],
  additionalGids: [44, 107],
};

const HOST = { "/dev/gpu0": char(240, 0), "/dev/gpu1": char(240, 1, { mode: 0o660 }), "/run": dir() };

function specText(edits: ContainerEdits): string {
  const devices = [{ name: "1", containerEdits: edits }];
  return JSON.stringify({ cdiVersion: "1.0.0", kind: "x.com/gpu", devices });
}

test("a damaged config.json is refused as it is, or gets all of its edits and stays JSON", () => {
  let changed = 0;
  const refused = fuzz(10_000, 250 * SCALE, (rand, show) => {
    const text =
      rand() < 0.5 ? damage(rand, CONFIG) : JSON.stringify(damageData(rand, JSON.parse(CONFIG)), null, below(rand, 2));
    show(text);
    const sys = memory({ ...HOST, "/etc/cdi/x.json": specText(EDITS), "/b/config.json": text });
    const container = { id: "web", door: "runtime", runtimeRoot: "" };
    let plan: ReturnType<typeof inject>;
    try {
      plan = inject(openMachine(sys), readBundle(sys, "/b"), container);
    } catch (thrown) {
      assert.equal(sys.text("/b/config.json"), text);
      assert.equal(sys.stat("/run/sluice/receipts/web.json"), undefined);
      throw thrown;
    }
    assert.deepEqual(sys.names("/b"), ["config.json"]);
    if (plan === undefined) {
      assert.equal(sys.text("/b/config.json"), text);
      return;
    }
    changed++;
    const config = readBundle(sys, "/b").config;
    assert.deepEqual(
      missingEdits(
        config,
        plan.edits.map((planned) => planned.edits),
      ),
      [],
    );
    assert.equal(config.annotations?.[STAMP], plan.digest);
    assert.equal(inject(openMachine(sys), readBundle(sys, "/b"), container), undefined);
  });
  assert.ok(refused > 50 * SCALE && changed > 50 * SCALE, `${refused} refused, ${changed} changed`);
});

test("a damaged text that is still JSON is patched to what was asked, or refused", () => {
  const refused = fuzz(20_000, 800 * SCALE, (rand, show) => {
    const text = damage(rand, CONFIG);
    show(text);
    let before: unknown;
    try {
      before = JSON.parse(text);
    } catch {
      return;
    }
    if (typeof before !== "object" || before === null || Array.isArray(before)) return;
    // A changed part is a new object, all else is shared: what patchJson is told to expect.
    const after = { ...before } as Record<string, unknown>;
    for (const key of Object.keys(after)) {
      const value = after[key];
      if (rand() < 0.5 || typeof value !== "object" || value === null) continue;
      after[key] = Array.isArray(value)
        ? [...value.slice(below(rand, 2)), { new: 1 }]
        : { ...value, env: ["x"], new: [] };
    }
    assert.deepEqual(JSON.parse(patchJson(text, before, after)), after);
  });
  assert.ok(refused < 100 * SCALE, `${refused} refused`);
});

/** What must hold of a spec file that was read, whatever is in it. */
function checkFile(read: SpecFile, text: string): void {
  assert.equal(read.spec === undefined, read.problems.length > 0);
  assert.ok(read.problems.length <= 20);
  for (const problem of read.problems) {
    checkRefusal(problem.code, printable(problemError("/a", [problem]).message));
  }
  const spec = read.spec;
  if (spec === undefined) return;
  if (read.canonical) assert.deepEqual(JSON.parse(text), spec);
  assert.deepEqual(checkSpec(spec), { spec, canonical: true, problems: [] });
  for (const device of spec.devices) {
    assert.ok(isDeviceName(`${spec.kind}=${device.name}`));
    for (const node of device.containerEdits.deviceNodes ?? []) assert.ok(node.path.startsWith("/"));
  }
  // What the checks let through can be used.
  for (const edits of [spec.containerEdits, ...spec.devices.map((device) => device.containerEdits)]) {
    if (edits !== undefined) assert.ok(isApplied(edits), JSON.stringify(edits));
  }
}

function isApplied(edits: ContainerEdits): boolean {
  let nodes = edits.deviceNodes ?? [];
  try {
    nodes = resolveDeviceNodes(nodes, memory({ "/dev/a": char(1, 3) }));
  } catch (thrown) {
    if (thrown instanceof SluiceError) return thrown.code === "E_CDI_DEVICE_NODE";
    throw thrown;
  }
  const resolved = { ...edits, deviceNodes: nodes };
  const config: Config = JSON.parse(CONFIG);
  return missingEdits(applyEdits(config, [resolved]), [resolved]).length === 0;
}

test("a damaged spec file is a spec that can be applied, or has problems; all else is as in the text", () => {
  let good = 0;
  fuzz(30_000, 300 * SCALE, (rand, show) => {
    const isYaml = rand() < 0.5;
    const text =
      rand() < 0.6
        ? damage(rand, isYaml ? YAML_SPEC : JSON_SPEC)
        : JSON.stringify(damageData(rand, FULL), null, below(rand, 2));
    show(text);
    const path = isYaml ? "/etc/cdi/a.yaml" : "/etc/cdi/a.json";
    const read = checkSpecFile(memory({ [path]: text }), path);
    checkFile(read, text);
    if (read.spec !== undefined) good++;
  });
  assert.ok(good > 25 * SCALE, `${good} good`);
});

test("a spec in YAML says what the same spec in JSON says, wherever the data is damaged", () => {
  fuzz(40_000, 80 * SCALE, (rand, show) => {
    const data = damageData(rand, FULL) as Spec;
    const text = yamlOf(data).trimStart();
    show(text);
    const yaml = parseYaml(text);
    if ("fault" in yaml) return checkRefusal("E_CDI_SYNTAX", yaml.fault.what);
    const json = checkSpec(JSON.parse(JSON.stringify(data)));
    // YAML's texts where JSON has numbers (`name: 0`), and the other way round, are the known differences.
    if (json.spec !== undefined) assert.deepEqual(checkSpec(yaml.value).spec, json.spec);
  });
});

/** What each name gives, or why not. */
function answers(registry: Registry): unknown[] {
  return ["x", "y", "z", "both", "yaml", "odd", "none"].map((name) => {
    try {
      const { path, device } = registry.find(`a/b=${name}`);
      return { path, device };
    } catch (thrown) {
      return (thrown as SluiceError).code;
    }
  });
}

test("whatever is in the caches beside the spec files, each device is the one that the files say", () => {
  const spec = (names: string[], mark: string) =>
    JSON.stringify({
      cdiVersion: "0.6.0",
      kind: "a/b",
      devices: names.map((name) => ({ name, containerEdits: { env: [`FROM=${mark}`] } })),
    });
  const tree = {
    "/run/sluice": dir(),
    "/etc/cdi/a.json": spec(["x", "y", "both"], "a"),
    "/etc/cdi/b.json": spec(["z", "both"], "b"),
    "/etc/cdi/bad.json": "{",
    "/etc/cdi/odd.json": spec(["odd"], "odd").replace('"kind"', '"KIND"'),
    "/var/run/cdi/c.yaml": `cdiVersion: 0.6.0\nkind: a/b\ndevices:\n- {name: yaml, containerEdits: {env: [FROM=c]}}\n- {name: x, containerEdits: {env: [FROM=c]}}\n`,
  };
  const dirs = ["/etc/cdi", "/var/run/cdi"];
  const open = (sys: MemorySys) => openRegistry(sys, dirs, openIndex(sys, "/run/sluice", "1"));
  const sys = memory(tree);
  const expected = answers(openRegistry(sys, dirs));
  for (let i = 0; i < 2; i++) assert.deepEqual(answers(open(sys)), expected);
  const kept = new Map(sys.names("/run/sluice/cdi").map((name) => [name, sys.text(`/run/sluice/cdi/${name}`) ?? ""]));
  assert.equal(kept.size, 3);
  fuzz(50_000, 150 * SCALE, (rand, show) => {
    const caches = [...kept].map(([name, text]) => [name, rand() < 0.5 ? text : damage(rand, text)] as const);
    show(caches);
    for (const [name, text] of caches) sys.put(`/run/sluice/cdi/${name}`, file(text, { mode: 0o600 }));
    assert.deepEqual(answers(open(sys)), expected);
  });
});

test("a damaged receipt counts for nothing: the container keeps its edits, or does not start", () => {
  const sys = memory({ ...HOST, "/etc/cdi/x.json": specText(EDITS), "/b/config.json": CONFIG });
  const container = { id: "web", door: "runtime", runtimeRoot: "" };
  const plan = inject(openMachine(sys), readBundle(sys, "/b"), container);
  const edits = plan?.edits.map((planned) => planned.edits) ?? [];
  const path = "/run/sluice/receipts/web.json";
  const receipt = sys.text(path) ?? "";
  const stamped = sys.text("/b/config.json") ?? "";
  const whole = new Receipts(sys, "/run/sluice").read("web");
  assert.equal(whole?.digest, plan?.digest);
  const corpus = ["null", "0", '""', "[]", "{}", `{"version":1,"id":"web","edits":[null],"digest":"${plan?.digest}"}`];
  fuzz(60_000, 200 * SCALE, (rand, show) => {
    const text =
      rand() < 0.1
        ? pick(rand, corpus)
        : rand() < 0.5
          ? damage(rand, receipt)
          : JSON.stringify(damageData(rand, whole));
    show(text);
    sys.put(path, file(text, { mode: 0o600 }));
    sys.put("/b/config.json", stamped);
    inject(openMachine(sys), readBundle(sys, "/b"), container);
    assert.deepEqual(missingEdits(readBundle(sys, "/b").config, edits), []);
    new Receipts(sys, "/run/sluice").release("web", "");
  });
});

test("a damaged configuration file gives settings of the right types, or a refusal", () => {
  const good = `# Settings
[runtime]
runtimes = ["runc", "/usr/bin/crun"]
[cdi]
spec_dirs = ["/etc/cdi", '/var/run/cdi']
default_kind = "nvidia.com/gpu"
[policy]
trust = "engine"
[share]
default_mode = """exclusive"""
`;
  const refused = fuzz(70_000, 200 * SCALE, (rand, show) => {
    const text = damage(rand, good);
    show(text);
    const path = "/etc/sluice/config.toml";
    const { runtime, cdi, policy, share } = loadSettings(memory({ [path]: text }), path);
    assert.ok(runtime.runtimes.length > 0 && runtime.runtimes.every((name) => typeof name === "string" && name !== ""));
    assert.ok(cdi.specDirs.length > 0 && cdi.specDirs.every((folder) => folder.startsWith("/")));
    assert.equal(kindProblem(cdi.defaultKind), undefined);
    assert.match(`${policy.trust} ${share.defaultMode}`, /^[a-z]+ [a-z]+$/);
  });
  assert.ok(refused > 50 * SCALE, `${refused} refused`);
});

test("whatever is quoted in a message is one printable piece that says the same", () => {
  fuzz(80_000, 300 * SCALE, (rand, show) => {
    const text = damage(rand, damage(rand, "a name"));
    show(text);
    const quoted = quote(text);
    checkRefusal("E_X", quoted);
    if (text.length <= 100) assert.equal(JSON.parse(quoted), text);
  });
});
