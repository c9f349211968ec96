import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Ajv } from "ajv";
import { readBundle } from "../../src/oci/bundle.ts";
import { inject } from "../../src/plan/inject.ts";
import { openMachine } from "../../src/plan/machine.ts";
import { SluiceError } from "../../src/sys/error.ts";
import type { MemorySys } from "../support/memory-files.ts";
import { allocate, answer, claim, containerd, hostWithSpecs } from "../support/pods.ts";

const schema = JSON.parse(readFileSync(new URL("../../schemas/audit.json", import.meta.url), "utf8"));
const validate = new Ajv({ strict: true }).compile(schema);

type Line = Record<string, unknown>;

const LOG = "/var/log/sluice/audit.jsonl";
const UUID = "GPU-dc7f00e3-9d16-37fd-109a-656f55e46245";
const ANSWER = { visible: [UUID], cdiDevices: [], nodes: ["/dev/nvidia2"] };
const MAJOR = { path: "/dev/x", type: "c", major: 195, minor: 9 };

/** The line that a container leaves. */
function lineOf(prepare: (sys: MemorySys) => void, config: object, annotations: Record<string, string> = {}): Line {
  const sys = hostWithSpecs("h100x8");
  prepare(sys);
  sys.put("/b/config.json", JSON.stringify({ ...config, annotations: containerd(annotations) }));
  try {
    inject(openMachine(sys), readBundle(sys, "/b"), { id: "c1", door: "runtime", runtimeRoot: "" });
  } catch (thrown) {
    if (!(thrown instanceof SluiceError)) throw thrown;
  }
  const lines = (sys.text(LOG) ?? "").trimEnd().split("\n");
  assert.equal(lines.length, 1);
  return JSON.parse(lines[0] as string) as Line;
}

const all = { process: { env: ["NVIDIA_VISIBLE_DEVICES=all"] } };
const OTHER = { resource: "x.com/y", ids: ["\u0000"], answer: { ...ANSWER, visible: [], nodes: ["/dev/y0"] } };
const allocated = (sys: MemorySys): void =>
  allocate(sys, [{ resource: "nvidia.com/gpu", ids: [UUID], answer: ANSWER }, OTHER]);

const LINES: Readonly<Record<string, [decision: string, line: Line]>> = {
  granted: ["granted", lineOf(allocated, all)],
  claim: ["refused", lineOf((sys) => allocate(sys, [], [claim("x.com/y=1")]), all)],
  "nothing allocated": ["refused", lineOf((sys) => allocate(sys, []), all)],
  "no evidence": ["refused", lineOf((sys) => answer(sys, { unavailable: "the kubelet is away" }), all)],
  notes: [
    "refused",
    lineOf(
      (sys) => answer(sys, { from: "PodResources List", allocation: { devices: [], claims: [] }, notes: ["left out"] }),
      all,
    ),
  ],
  "the driver alone": ["granted", lineOf(allocated, { process: { env: ["NVIDIA_VISIBLE_DEVICES=none"] } })],
  "a wrong request": ["refused", lineOf(allocated, {}, { "gpu.sluice.dev": "," })],
  carried: ["refused", lineOf(allocated, { linux: { devices: [MAJOR] } })],
  privileged: ["reported", lineOf(allocated, { linux: { resources: { devices: [{ allow: true, access: "rwm" }] } } })],
  "much carried": [
    "refused",
    lineOf(allocated, { linux: { devices: Array.from({ length: 200 }, (_, i) => ({ ...MAJOR, minor: 10 + i })) } }),
  ],
};

test("every line that is really written is one of schemas/audit.json", () => {
  for (const [name, [decision, line]] of Object.entries(LINES)) {
    assert.equal(validate(line), true, `${name}: ${JSON.stringify(validate.errors)}`);
    assert.equal(line["decision"], decision, name);
  }
});

test("every field of the schema is written in one of them", () => {
  const seen = new Set(Object.values(LINES).flatMap(([, line]) => Object.keys(line)));
  assert.deepEqual([...seen].sort(), Object.keys(schema.properties).sort());
});

test("the schema refuses what is no such line", () => {
  const good = LINES["granted"]?.[1] as Line;
  for (const field of schema.required) {
    const { [field]: _, ...rest } = good;
    assert.equal(validate(rest), false, field);
  }
  for (const change of [
    { version: 2 },
    { time: "yesterday" },
    { decision: "allowed" },
    { digest: "abc" },
    { more: 1 },
    { evidence: {} },
    { evidence: { from: "x", unavailable: "y", allocation: { devices: [], claims: [] } } },
    { denied: [{ what: "x", code: "nonsense", message: "y" }] },
    { pod: { namespace: "a", pod: "b" } },
  ]) {
    assert.equal(validate({ ...good, ...change }), false, JSON.stringify(change));
  }
});
