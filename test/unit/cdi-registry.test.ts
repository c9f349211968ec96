import assert from "node:assert/strict";
import { test } from "node:test";
import { openRegistry } from "../../src/cdi/registry.ts";
import { SluiceError } from "../../src/sys/error.ts";
import { dir, file, link, type MemorySys, memory, type Tree } from "../support/memory-files.ts";

const ETC = "/etc/cdi";
const RUN = "/var/run/cdi";
const DIRS = [ETC, RUN];

/** A spec whose devices each have one variable that tells the file. */
function spec(kind: string, names: readonly string[], mark = ""): string {
  const devices = names.map((name) => ({ name, containerEdits: { env: [`FROM=${mark}`] } }));
  return JSON.stringify({ cdiVersion: "0.6.0", kind, devices });
}

function registry(tree: Tree, dirs = DIRS) {
  return openRegistry(memory(tree), dirs);
}

function thrown(action: () => unknown): SluiceError {
  try {
    action();
  } catch (e) {
    if (e instanceof SluiceError) return e;
    throw e;
  }
  throw new Error("did not throw");
}

test("a device is found with its spec and its file", () => {
  const found = registry({ [`${ETC}/a.json`]: spec("a/b", ["x", "y"], "a") }).find("a/b=y");
  assert.equal(found.name, "a/b=y");
  assert.equal(found.path, `${ETC}/a.json`);
  assert.deepEqual(found.device, { name: "y", containerEdits: { env: ["FROM=a"] } });
  assert.equal(found.spec.kind, "a/b");
});

test("two devices of a file come with the same spec", () => {
  const opened = registry({ [`${ETC}/a.json`]: spec("a/b", ["x", "y"]) });
  assert.ok(opened.find("a/b=x").spec === opened.find("a/b=y").spec);
});

test("names that differ only in case, and devices of other kinds, are others", () => {
  const opened = registry({ [`${ETC}/a.json`]: spec("a/b", ["x"]), [`${ETC}/b.json`]: spec("a/c", ["x"], "c") });
  assert.deepEqual(opened.find("a/c=x").device.containerEdits.env, ["FROM=c"]);
  assert.throws(() => opened.find("a/b=X"), { code: "E_CDI_UNKNOWN_DEVICE" });
  assert.throws(() => opened.find("x"), { code: "E_CDI_NAME" });
});

test("only .json and .yaml files of the folders themselves are specs", () => {
  const opened = registry({
    [`${ETC}/a.json`]: spec("a/b", ["json"]),
    [`${ETC}/b.yaml`]: spec("a/b", ["yaml"]),
    [`${ETC}/c.yml`]: spec("a/b", ["yml"]),
    [`${ETC}/d.json.tmp`]: spec("a/b", ["tmp"]),
    [`${ETC}/sub/e.json`]: spec("a/b", ["sub"]),
    [`${ETC}/folder.json/f.json`]: spec("a/b", ["folder"]),
    [`${ETC}/.hidden.json`]: spec("a/b", ["hidden"]),
  });
  assert.deepEqual(opened.names("a/b"), ["hidden", "json", "yaml"]);
  assert.deepEqual(opened.problems(), []);
});

test("folders that do not exist are nothing, and one of two may be missing", () => {
  assert.deepEqual(registry({}).devices(), []);
  assert.deepEqual(registry({}).problems(), []);
  assert.deepEqual(registry({ [`${RUN}/a.json`]: spec("a/b", ["x"]) }).names("a/b"), ["x"]);
});

test("a device of a later folder hides those of the same name before it, and only those", () => {
  const opened = registry({
    [`${ETC}/a.json`]: spec("a/b", ["x", "y"], "etc"),
    [`${RUN}/z.json`]: spec("a/b", ["x"], "run"),
  });
  assert.equal(opened.find("a/b=x").path, `${RUN}/z.json`);
  assert.equal(opened.find("a/b=y").path, `${ETC}/a.json`);
  assert.deepEqual(opened.devices(), [
    { name: "a/b=x", path: `${ETC}/a.json`, shadowedBy: `${RUN}/z.json` },
    { name: "a/b=y", path: `${ETC}/a.json` },
    { name: "a/b=x", path: `${RUN}/z.json` },
  ]);
  assert.deepEqual(opened.names("a/b"), ["y", "x"]);
  assert.deepEqual(
    opened.specsOfKind("a/b").map((loaded) => loaded.path),
    [`${ETC}/a.json`, `${RUN}/z.json`],
  );
});

test("a spec all of whose devices are hidden is none of its kind", () => {
  const opened = registry({ [`${ETC}/a.json`]: spec("a/b", ["x"]), [`${RUN}/a.json`]: spec("a/b", ["x"]) });
  assert.deepEqual(
    opened.specsOfKind("a/b").map((loaded) => loaded.path),
    [`${RUN}/a.json`],
  );
  assert.deepEqual(opened.specsOfKind("a/c"), []);
});

test("a device that two files of a folder define is a conflict: neither counts, and both are named", () => {
  const opened = registry({
    [`${ETC}/a.json`]: spec("a/b", ["x", "y"]),
    [`${ETC}/b.json`]: spec("a/b", ["x", "z"]),
  });
  assert.throws(() => opened.find("a/b=x"), {
    code: "E_CDI_CONFLICT",
    message: /\/etc\/cdi\/a\.json and \/etc\/cdi\/b\.json/,
  });
  assert.equal(opened.find("a/b=y").path, `${ETC}/a.json`);
  assert.equal(opened.find("a/b=z").path, `${ETC}/b.json`);
  assert.deepEqual(opened.names("a/b"), ["y", "z"]);
  assert.deepEqual(
    opened.problems().map((problem) => [problem.code, problem.path, problem.what]),
    [
      ["E_CDI_CONFLICT", `${ETC}/a.json`, "a/b=x is also in /etc/cdi/b.json"],
      ["E_CDI_CONFLICT", `${ETC}/b.json`, "a/b=x is also in /etc/cdi/a.json"],
    ],
  );
  assert.deepEqual(opened.devices()[0], { name: "a/b=x", path: `${ETC}/a.json`, conflictsWith: `${ETC}/b.json` });
});

test("2.8 a: a conflict in a lower folder does not remove the device of a higher one", () => {
  const low = { [`${ETC}/a.json`]: spec("a/b", ["x"]), [`${ETC}/b.json`]: spec("a/b", ["x"]) };
  const opened = registry({ ...low, [`${RUN}/c.json`]: spec("a/b", ["x"], "run") });
  assert.equal(opened.find("a/b=x").path, `${RUN}/c.json`);
  assert.deepEqual(opened.names("a/b"), ["x"]);
  assert.equal(opened.problems().length, 2);
});

test("2.8 a: of three folders the highest that has the device decides, also by a conflict", () => {
  const dirs = ["/1", "/2", "/3"];
  const one = spec("a/b", ["x"]);
  const conflictInTheMiddle = { "/1/a.json": one, "/2/a.json": one, "/2/b.json": one };
  assert.throws(() => registry(conflictInTheMiddle, dirs).find("a/b=x"), { code: "E_CDI_CONFLICT" });
  assert.deepEqual(registry(conflictInTheMiddle, dirs).names("a/b"), []);
  const settledAbove = { ...conflictInTheMiddle, "/3/a.json": one };
  assert.equal(registry(settledAbove, dirs).find("a/b=x").path, "/3/a.json");
  assert.equal(registry(settledAbove, ["/3", "/1"]).find("a/b=x").path, "/1/a.json");
});

test("a folder that is named twice counts once, in its last place", () => {
  const opened = registry({ "/1/a.json": spec("a/b", ["x"]), "/2/a.json": spec("a/b", ["x"]) }, ["/1", "/2", "/1"]);
  assert.equal(opened.find("a/b=x").path, "/1/a.json");
  assert.equal(opened.devices().length, 2);
});

test("a bad file is reported with all its problems and hides no other", () => {
  const opened = registry({
    [`${ETC}/a.json`]: "{",
    [`${ETC}/b.json`]: spec("a/b", ["x"]),
    [`${ETC}/c.json`]: spec("1/b", ["-"]),
    [`${ETC}/d.json`]: file(spec("a/b", ["d"]), { mode: 0o666 }),
    [`${ETC}/e.json`]: link("nowhere"),
    [`${ETC}/f\n.json`]: spec("a/b", ["f"]),
  });
  assert.deepEqual(opened.names("a/b"), ["x"]);
  assert.deepEqual(
    opened.problems().map((problem) => [problem.path, problem.code, problem.pointer]),
    [
      [`${ETC}/e.json`, "E_CDI_READ", ""],
      [`${ETC}/f\n.json`, "E_CDI_READ", ""],
      [`${ETC}/a.json`, "E_CDI_SYNTAX", ""],
      [`${ETC}/c.json`, "E_CDI_NAME", "/kind"],
      [`${ETC}/c.json`, "E_CDI_NAME", "/devices/0/name"],
      [`${ETC}/d.json`, "E_CDI_UNTRUSTED", ""],
    ],
  );
});

test("a folder that cannot be trusted or read is reported, and the other one counts", () => {
  const tree: Tree = {
    [ETC]: dir({ mode: 0o777 }),
    [`${ETC}/a.json`]: spec("a/b", ["x"]),
    [`${RUN}/a.json`]: spec("a/b", ["y"]),
  };
  const open = registry(tree);
  assert.deepEqual(open.names("a/b"), ["y"]);
  assert.deepEqual(
    open.problems().map((problem) => [problem.path, problem.code]),
    [[ETC, "E_CDI_UNTRUSTED"]],
  );
  const sys = memory({ ...tree, [ETC]: dir() });
  sys.fail("list", RUN, "EACCES");
  assert.deepEqual(openRegistry(sys, DIRS).names("a/b"), ["x"]);
  assert.deepEqual(
    openRegistry(sys, DIRS)
      .problems()
      .map((problem) => [problem.path, problem.code]),
    [[RUN, "E_CDI_READ"]],
  );
  const notDir = registry({ [ETC]: "x", [`${RUN}/a.json`]: spec("a/b", ["y"]) });
  assert.deepEqual(notDir.names("a/b"), ["y"]);
  assert.match(notDir.problems()[0]?.what ?? "", /\/etc\/cdi is not a folder/);
});

test("a link to a spec is one, through /run as well as /var/run", () => {
  const opened = registry({
    "/var/run": link("/run"),
    "/run/cdi/a.json": link("/usr/share/vendor/spec.json"),
    "/usr/share/vendor/spec.json": spec("a/b", ["x"]),
  });
  assert.equal(opened.find("a/b=x").path, `${RUN}/a.json`);
});

test("an unknown device is refused with what there is instead, the nearest names first", () => {
  const names = ["all", ...Array.from({ length: 20 }, (_, i) => `gpu-${i}`)];
  const opened = registry({
    [`${ETC}/a.json`]: spec("nvidia.com/gpu", names),
    [`${ETC}/b.json`]: spec("amd.com/gpu", ["0"]),
  });
  const near = thrown(() => opened.find("nvidia.com/gpu=gpu-199"));
  assert.equal(near.code, "E_CDI_UNKNOWN_DEVICE");
  assert.match(
    near.what,
    /^there is no CDI device "nvidia\.com\/gpu=gpu-199": of the kind nvidia\.com\/gpu there are gpu-19, /,
  );
  assert.match(near.what, / and 13 more$/);
  assert.match(
    thrown(() => opened.find("nvidia.com/gpx=0")).what,
    /has devices of the kind "nvidia\.com\/gpx"; there are nvidia\.com\/gpu, amd\.com\/gpu$/,
  );
});

test("an unknown device where there are no specs is refused with what to do", () => {
  const error = thrown(() => registry({}).find("nvidia.com/gpu=0"));
  assert.equal(error.code, "E_CDI_UNKNOWN_DEVICE");
  assert.match(error.what, /\/etc\/cdi and \/var\/run\/cdi hold no usable spec file$/);
  assert.equal(error.remedy, "install the CDI spec of the device's vendor there");
});

test("2.8 l: an unknown device is refused with the files that could not be used, and why", () => {
  const bad = thrown(() => registry({ [`${ETC}/a.json`]: "{" }).find("a/b=x"));
  assert.match(bad.what, /may be in one of them: \/etc\/cdi\/a\.json \(E_CDI_SYNTAX: it is not JSON: line 1, column 2/);
  const tree: Tree = {
    [`${ETC}/a.json`]: spec("a/b", ["y"]),
    [RUN]: dir({ mode: 0o777 }),
    [`${RUN}/x.json`]: spec("a/b", ["x"]),
  };
  const untrusted = thrown(() => registry(tree).find("a/b=x"));
  assert.match(untrusted.what, /of the kind a\/b there are y; not used, .* \/var\/run\/cdi \(E_CDI_UNTRUSTED/);
  assert.match(untrusted.remedy, /mend the file/);
});

test("without an index every file is read once, and what was read is used", () => {
  const path = `${ETC}/a.json`;
  const files: MemorySys = memory({ [path]: spec("a/b", ["x"], "old"), [`${ETC}/b.json`]: spec("a/b", ["y"]) });
  const opened = openRegistry(files, DIRS);
  files.put(path, spec("a/b", ["x"], "new"));
  assert.deepEqual(opened.find("a/b=x").device.containerEdits.env, ["FROM=old"]);
  assert.equal(files.count("readText"), 2);
});
