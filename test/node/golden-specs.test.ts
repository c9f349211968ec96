/**
 * The specs of every fixture host, as they were looked at by a person and found right. After a change that means to
 * change them: `GOLDEN=write node --import tsx --test test/node/golden-specs.test.ts`, and read the difference.
 */

import assert from "node:assert/strict";
import * as fs from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { Ajv } from "ajv";
import { checkSpec } from "../../src/cdi/validate.part.ts";
import { minimumVersion } from "../../src/cdi/version.ts";
import { type Made, makeSpecs } from "../../src/host/cdi-spec.ts";
import type { SpecOptions } from "../../src/host/origin.ts";
import { specText } from "../../src/host/publish.ts";
import { HOSTS, type HostName } from "../fixtures/hosts/hosts.ts";
import { memory } from "../support/memory-files.ts";

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
const folder = path.join(root, "test/fixtures/specs");
const schema = JSON.parse(fs.readFileSync(path.join(root, "schemas/cdi-spec.json"), "utf8"));
const validate = new Ajv({ strict: true, strictRequired: false, strictTypes: false }).compile(schema);

const OPTIONS: SpecOptions = {
  hook: "/usr/bin/sluice",
  params: "/run/sluice/cdi/nvidia-params",
  features: ["gds", "mofed", "gdrcopy", "nvswitch", "imex", "mig-config", "mig-monitor"],
};

function specsOf(name: HostName): Made {
  const host = HOSTS[name]();
  return makeSpecs(memory(host.tree), OPTIONS, host.smi);
}

/** What a person is told beside the specs. */
function told(made: Made): string {
  const faults = made.faults.map(({ kind, what, remedy }) => `no spec of ${kind}: ${what}; ${remedy}`);
  return [...faults, ...made.notices].map((line) => `${line}\n`).join("");
}

function golden(made: Made): Record<string, string> {
  const files = Object.fromEntries(made.specs.map((one) => [`${one.spec.kind.replace("/", "-")}.json`, specText(one)]));
  const text = told(made);
  return text === "" ? files : { ...files, "told.txt": text };
}

for (const name of Object.keys(HOSTS) as HostName[]) {
  test(`${name}: the golden specs`, () => {
    const dir = path.join(folder, name);
    const files = golden(specsOf(name));
    if (process.env.GOLDEN === "write") {
      fs.rmSync(dir, { recursive: true, force: true });
      if (Object.keys(files).length > 0) fs.mkdirSync(dir, { recursive: true });
      for (const [file, text] of Object.entries(files)) fs.writeFileSync(path.join(dir, file), text);
    }
    const there = fs.existsSync(dir) ? fs.readdirSync(dir).sort() : [];
    assert.deepEqual(there, Object.keys(files).sort());
    for (const [file, text] of Object.entries(files)) {
      assert.equal(text, fs.readFileSync(path.join(dir, file), "utf8"), `${name}/${file}`);
    }
  });

  test(`${name}: the schema and the validator take its specs, of the lowest version that can say them`, () => {
    for (const { spec } of specsOf(name).specs) {
      assert.equal(validate(spec), true, `${spec.kind}: ${JSON.stringify(validate.errors)}`);
      assert.deepEqual(checkSpec(spec).problems, [], spec.kind);
      assert.equal(spec.cdiVersion, minimumVersion(spec).version);
    }
  });

  test(`${name}: its specs pin no numbers of nodes that are there, name no file that is not, and have one hook at most`, () => {
    const tree = memory(HOSTS[name]().tree);
    for (const { spec } of specsOf(name).specs) {
      const edits = [spec.containerEdits ?? {}, ...spec.devices.map((device) => device.containerEdits)];
      for (const node of edits.flatMap((one) => one.deviceNodes ?? [])) {
        const stat = tree.stat(node.path);
        if (node.major === undefined) assert.equal(stat?.kind, "char", `${spec.kind}: ${node.path}`);
        else assert.notDeepEqual([stat?.major, stat?.minor], [node.major, node.minor], `${spec.kind}: ${node.path}`);
      }
      for (const mount of edits.flatMap((one) => one.mounts ?? [])) {
        assert.notEqual(tree.stat(mount.hostPath), undefined, `${spec.kind}: ${mount.hostPath}`);
        assert.equal(mount.type, "bind");
      }
      const hooks = edits.flatMap((one) => one.hooks ?? []);
      assert.ok(hooks.length <= (spec.kind === "nvidia.com/gpu" ? 1 : 0), spec.kind);
      for (const hook of hooks)
        assert.ok((hook.env ?? []).length > 0, "without an environment, it has the container's");
    }
  });
}
