import assert from "node:assert/strict";
import { test } from "node:test";
import { openRegistry, type Registry } from "../../src/cdi/registry.ts";
import { openIndex } from "../../src/cdi/spec-index.ts";
import { char, dir, file, Killed, link, type MemorySys, memory, type Tree } from "../support/memory-files.ts";
import { random } from "../support/random.ts";

const ETC = "/etc/cdi";
const RUN = "/var/run/cdi";
const STATE = "/run/sluice";
const CACHE = `${STATE}/cdi`;
const INDEX = `${CACHE}/index`;

function spec(names: readonly string[], mark = "", kind = "a/b"): string {
  const devices = names.map((name) => ({ name, containerEdits: { env: [`FROM=${mark}`] } }));
  return JSON.stringify({ cdiVersion: "0.6.0", kind, devices });
}

function yaml(name: string, mark = ""): string {
  return `cdiVersion: 0.6.0\nkind: a/b\ndevices:\n- name: ${name}\n  containerEdits: {env: [FROM=${mark}]}\n`;
}

/** A machine with a state folder and some specs. */
function machine(tree: Tree): MemorySys {
  return memory({ [STATE]: dir(), ...tree });
}

/** What a new process would open. */
function open(sys: MemorySys, build = "1"): Registry {
  sys.calls.length = 0;
  return openRegistry(sys, [ETC, RUN], openIndex(sys, STATE, build));
}

function specsRead(sys: MemorySys): string[] {
  return sys.calls.filter((call) => /^readText \/(etc|var)\//.test(call)).map((call) => call.slice("readText ".length));
}

function from(registry: Registry, name: string): string | undefined {
  return registry.find(name).device.containerEdits.env?.[0];
}

/** What a registry says, for comparing one that used the index with one that did not. */
function all(registry: Registry): unknown {
  return [registry.devices(), registry.problems()];
}

test("with a fresh index only the spec that is used is read", () => {
  const tree: Record<string, string> = {};
  for (let i = 0; i < 100; i++) tree[`${RUN}/claim-${i}.json`] = spec([`claim-${i}`], `${i}`);
  const sys = machine(tree);
  open(sys);
  assert.equal(specsRead(sys).length, 100);
  const again = open(sys);
  assert.equal(from(again, "a/b=claim-42"), "FROM=42");
  assert.deepEqual(specsRead(sys), [`${RUN}/claim-42.json`]);
  assert.equal(sys.count("createFile"), 0);
  assert.equal(sys.count("list"), 1);
  assert.equal(sys.count("stamps"), 1);
});

test("a registry's state is that of the specs which it has seen, though another start writes the index meanwhile", () => {
  const sys = machine({ [`${ETC}/a.json`]: spec(["x"], "1"), [`${ETC}/b.json`]: spec(["y"]) });
  sys.clock += 10_000;
  open(sys);
  assert.equal(open(sys).state(), open(sys).state());
  const earlier = open(sys);
  sys.unlink(`${ETC}/b.json`);
  sys.clock += 10_000;
  open(sys);
  const later = open(sys);
  assert.ok(later.state() !== undefined);
  assert.notEqual(earlier.state(), later.state());
});

test("a new, a changed and a removed file cost reading those that are there, and are seen", () => {
  const sys = machine({
    [`${ETC}/b.json`]: spec(["b"], "1"),
    [`${ETC}/d.json`]: spec(["d"]),
    [`${RUN}/z.json`]: spec(["z"]),
  });
  open(sys);
  sys.put(`${ETC}/a.json`, spec(["a"], "a"));
  sys.put(`${ETC}/b.json`, spec(["b"], "2"));
  sys.put(`${ETC}/e.json`, spec(["e"], "e"));
  sys.remove(`${ETC}/d.json`);
  const opened = open(sys);
  assert.deepEqual(specsRead(sys), [`${ETC}/a.json`, `${ETC}/b.json`, `${ETC}/e.json`]);
  assert.deepEqual(opened.names("a/b"), ["a", "b", "e", "z"]);
  assert.equal(from(opened, "a/b=b"), "FROM=2");
  sys.clock += 60_000;
  open(sys);
  open(sys);
  assert.deepEqual(specsRead(sys), []);
});

test("all files of a folder removed, or the folder itself, leave nothing", () => {
  const sys = machine({ [`${ETC}/a.json`]: spec(["a"]), [`${RUN}/b.json`]: spec(["b"]) });
  open(sys);
  sys.remove(`${ETC}/a.json`);
  assert.deepEqual(open(sys).names("a/b"), ["b"]);
  sys.remove(RUN);
  assert.deepEqual(open(sys).names("a/b"), []);
  open(sys);
  assert.equal(sys.count("createFile"), 0);
});

test("a bad file is remembered with its problems until it changes", () => {
  const sys = machine({ [`${ETC}/a.json`]: "{", [`${ETC}/b.json`]: spec(["b"]) });
  const first = all(open(sys));
  assert.deepEqual(all(open(sys)), first);
  assert.deepEqual(specsRead(sys), []);
  sys.put(`${ETC}/a.json`, spec(["a"]));
  assert.deepEqual(open(sys).problems(), []);
});

test("a file that others may write to from now on is refused, though its text is the same", () => {
  const sys = machine({ [`${ETC}/a.json`]: spec(["a"]) });
  open(sys);
  sys.chmod(`${ETC}/a.json`, 0o666);
  assert.throws(() => open(sys).find("a/b=a"), { code: "E_CDI_UNKNOWN_DEVICE", message: /E_CDI_UNTRUSTED/ });
  sys.chmod(`${ETC}/a.json`, 0o644);
  sys.chmod(ETC, 0o777);
  assert.throws(() => open(sys).find("a/b=a"), { code: "E_CDI_UNKNOWN_DEVICE", message: /E_CDI_UNTRUSTED/ });
});

test("a folder behind a link that others may write to from now on is seen, though the file is as it was", () => {
  const sys = machine({ [`${ETC}/a.json`]: link("/opt/vendor/spec"), "/opt/vendor/spec": spec(["a"]) });
  open(sys);
  assert.equal(from(open(sys), "a/b=a"), "FROM=");
  sys.chmod("/opt/vendor", 0o777);
  assert.throws(() => open(sys).find("a/b=a"), { code: "E_CDI_UNKNOWN_DEVICE", message: /the folder \/opt\/vendor/ });
});

test("a racy file is read again until it has aged, so that a change within a clock tick is seen", () => {
  const sys = machine({ [`${ETC}/old.json`]: spec(["old"]) });
  sys.put(`${ETC}/new.json`, spec(["n"], "1"));
  assert.equal(from(open(sys), "a/b=n"), "FROM=1");
  const before = sys.stat(`${ETC}/new.json`)?.stamp;
  sys.overwrite(`${ETC}/new.json`, spec(["n"], "2"));
  assert.equal(sys.stat(`${ETC}/new.json`)?.stamp, before); // the trap
  assert.equal(from(open(sys), "a/b=n"), "FROM=2");
  assert.deepEqual(specsRead(sys), [`${ETC}/new.json`]);
  sys.clock += 200;
  assert.equal(from(open(sys), "a/b=n"), "FROM=2");
  assert.deepEqual(specsRead(sys), [`${ETC}/new.json`]);
  assert.equal(sys.count("createFile"), 1);
  open(sys);
  assert.deepEqual(specsRead(sys), []);
});

test("a file with a time in whole seconds is racy for two seconds: its file system may have no finer ones", () => {
  const sys = machine({});
  sys.clock = 1_700_000_100_000;
  sys.put(`${ETC}/a.json`, spec(["a"]));
  sys.clock += 1500;
  open(sys);
  open(sys);
  assert.deepEqual(specsRead(sys), [`${ETC}/a.json`]);
  sys.clock += 1000;
  open(sys);
  open(sys);
  assert.deepEqual(specsRead(sys), []);
});

test("a file from the future is read each time", () => {
  const sys = machine({});
  sys.clock += 3_600_000;
  sys.put(`${ETC}/a.json`, spec(["a"]));
  sys.clock -= 3_600_000;
  open(sys);
  open(sys);
  assert.deepEqual(specsRead(sys), [`${ETC}/a.json`]);
});

test("a file that is replaced between the look at it and the reading is checked in full", () => {
  const sys = machine({ [`${ETC}/a.json`]: spec(["a"], "1") });
  open(sys);
  const replaced = open(sys);
  sys.put(`${ETC}/a.json`, spec(["a"], "2"));
  assert.equal(from(replaced, "a/b=a"), "FROM=2");
  const broken = open(sys);
  sys.put(`${ETC}/a.json`, spec(["a"]).replace("FROM=", "FROM"));
  // The line came from a file that was racy and read in the scan; the spec of the scan is what counts.
  assert.equal(from(broken, "a/b=a"), "FROM=2");
  sys.put(`${ETC}/a.json`, spec(["a"], "3"));
  sys.clock += 60_000;
  open(sys);
  const late = open(sys);
  sys.put(`${ETC}/a.json`, spec(["a"]).replace("FROM=", "FROM"));
  assert.throws(() => late.find("a/b=a"), { code: "E_CDI_SPEC", message: /env\/0/ });
});

test("a file that is gone when its spec is wanted is an error or an unknown device", () => {
  const sys = machine({ [`${ETC}/a.json`]: spec(["a"]) });
  open(sys);
  const opened = open(sys);
  sys.remove(`${ETC}/a.json`);
  assert.throws(() => opened.find("a/b=a"), { code: "E_CDI_READ", message: /deleted just now/ });
});

test("a YAML spec is parsed once: later runs take its JSON from beside the index", () => {
  const sys = machine({ [`${ETC}/a.yaml`]: yaml("a", "1"), [`${ETC}/b.yaml`]: yaml("b") });
  assert.equal(from(open(sys), "a/b=a"), "FROM=1");
  assert.deepEqual(sys.names(CACHE), ["%2Fetc%2Fcdi%2Fa.yaml.json", "index"]);
  assert.equal(from(open(sys), "a/b=a"), "FROM=1");
  assert.deepEqual(specsRead(sys), []);
  sys.put(`${ETC}/a.yaml`, yaml("a", "2"));
  assert.equal(from(open(sys), "a/b=a"), "FROM=2");
  sys.clock += 60_000;
  assert.equal(from(open(sys), "a/b=a"), "FROM=2");
  assert.deepEqual(specsRead(sys), [`${ETC}/a.yaml`]);
  assert.equal(from(open(sys), "a/b=a"), "FROM=2");
  assert.deepEqual(specsRead(sys), []);
});

test("the JSON of a racy YAML spec is not kept, so that a change within a clock tick is seen", () => {
  const sys = machine({});
  sys.put(`${ETC}/a.yaml`, yaml("a", "1"));
  assert.equal(from(open(sys), "a/b=a"), "FROM=1");
  assert.deepEqual(sys.names(CACHE), ["index"]);
  sys.overwrite(`${ETC}/a.yaml`, yaml("a", "2"));
  sys.clock += 60_000;
  assert.equal(from(open(sys), "a/b=a"), "FROM=2");
  assert.equal(from(open(sys), "a/b=a"), "FROM=2");
});

test("the kept JSON of a spec that is gone is removed when the index is next written", () => {
  const sys = machine({ [`${ETC}/a.yaml`]: yaml("a"), [`${ETC}/b.yaml`]: yaml("b") });
  from(open(sys), "a/b=a");
  from(open(sys), "a/b=b");
  sys.remove(`${ETC}/a.yaml`);
  open(sys);
  assert.deepEqual(sys.names(CACHE), ["%2Fetc%2Fcdi%2Fb.yaml.json", "index"]);
});

test("kept JSON that is damaged, of another stamp or missing costs a parse of the YAML", () => {
  const sys = machine({ [`${ETC}/a.yaml`]: yaml("a", "1") });
  from(open(sys), "a/b=a");
  const kept = `${CACHE}/%2Fetc%2Fcdi%2Fa.yaml.json`;
  const text = sys.text(kept) ?? "";
  for (const damaged of [text.slice(0, -2), text.replace("FROM=1", "FROM"), `x${text}`, "", text.replace('{"', '["')]) {
    sys.put(kept, damaged);
    assert.equal(from(open(sys), "a/b=a"), "FROM=1", damaged);
  }
  sys.remove(kept);
  assert.equal(from(open(sys), "a/b=a"), "FROM=1");
  assert.equal(sys.text(kept), text);
});

test("JSON that had to be put right is kept put right", () => {
  const sys = machine({ [`${ETC}/a.json`]: spec(["a"], "1").replace('"kind"', '"KIND"') });
  assert.equal(from(open(sys), "a/b=a"), "FROM=1");
  assert.equal(open(sys).find("a/b=a").spec.kind, "a/b");
  assert.deepEqual(specsRead(sys), []);
});

test("an index that is damaged in any way is made anew, and nothing else changes", () => {
  const tree = {
    [`${ETC}/a.json`]: spec(["x", "y"]),
    [`${ETC}/b.json`]: spec(["z"]),
    [`${ETC}/bad.json`]: "{",
    [`${RUN}/c.yaml`]: yaml("x"),
  };
  const good = machine(tree);
  const expected = all(open(good));
  const index = good.text(INDEX) ?? "";
  assert.match(index, /\n0\tj\ta\/b\t x y \n/);
  const next = random(9);
  const damaged = [
    "",
    "x",
    index.slice(0, index.length >> 1),
    index.slice(0, -1),
    `${index}\n`,
    index.replace("1 ", "2 "),
  ];
  for (let i = 0; i < 150; i++) {
    const at = Math.floor(next() * index.length);
    damaged.push(index.slice(0, at) + index.slice(at + 1 + Math.floor(next() * 20)));
  }
  for (const text of damaged) {
    good.put(INDEX, file(text, { mode: 0o600 }));
    assert.deepEqual(all(open(good)), expected, text);
    assert.equal(good.text(INDEX), index, text);
  }
});

test("an index whose lines lie cannot hide a device, or give one that its file does not have", () => {
  const sys = machine({ [`${ETC}/a.json`]: spec(["x"], "1"), [`${ETC}/b.json`]: spec(["y"]) });
  open(sys);
  const index = sys.text(INDEX) ?? "";
  for (const [was, is] of [
    ["\t x ", "\t w "],
    ["\ta/b\t x ", "\ta/c\t x "],
    ["j\ta/b\t x ", "!\tgarbage!!"],
    ["j\ta/b\t x ", "q\t\t\t\t\t\t"],
  ] as const) {
    const body = index
      .slice(index.indexOf("\n") + 1)
      .replace(was, is)
      .replace(/^\t(\d+)/, (_, length) => `\t${Number(length) + is.length - was.length}`);
    const lie = `${index.slice(0, index.indexOf("\n")).replace(/\d+$/, `${body.length}`)}\n${body}`;
    sys.put(INDEX, file(lie, { mode: 0o600 }));
    assert.equal(open(sys).names("a/b").includes("x"), false, is); // it is read
    assert.equal(from(open(sys), "a/b=x"), "FROM=1", is);
    assert.equal(sys.text(INDEX), index, is);
    sys.put(INDEX, file(lie, { mode: 0o600 }));
    assert.throws(() => open(sys).find("a/b=w"), { code: "E_CDI_UNKNOWN_DEVICE" }, is);
  }
});

test("the index of another build is not used", () => {
  const sys = machine({ [`${ETC}/a.json`]: spec(["a"]) });
  open(sys, "1");
  open(sys, "2");
  assert.deepEqual(specsRead(sys), [`${ETC}/a.json`]);
  open(sys, "2");
  assert.deepEqual(specsRead(sys), []);
});

test("an index in a folder that is not ours alone is neither read nor written", () => {
  for (const folder of [
    dir({ uid: 1000, mode: 0o755 }),
    dir({ mode: 0o777 }),
    dir({ mode: 0o775 }),
    link("/tmp/cdi"),
    file("x"),
    char(1, 3),
  ]) {
    const trap = machine({ [`${ETC}/a.json`]: spec(["a"]) });
    open(trap);
    const index = trap.text(INDEX) ?? "";
    const sys = machine({ [`${ETC}/a.json`]: spec(["a"]), "/tmp/cdi/index": index });
    sys.put(CACHE, folder);
    if (folder.kind === "dir") sys.put(INDEX, file(index, { mode: 0o600 }));
    open(sys);
    assert.deepEqual(open(sys).names("a/b"), ["a"]);
    assert.deepEqual(specsRead(sys), [`${ETC}/a.json`], folder.kind);
    assert.equal(sys.count("createFile") + sys.count("rename"), 0);
  }
});

test("where nothing can be written everything works", () => {
  for (const [call, code] of [
    ["createFile", "ENOSPC"],
    ["rename", "EROFS"],
    ["mkdir", "EROFS"],
    ["lstat", "EACCES"],
  ] as const) {
    const sys = machine({ [`${ETC}/a.json`]: spec(["a"], "1"), [`${ETC}/b.yaml`]: yaml("b", "2") });
    sys.fail(call, "*", code);
    for (let run = 0; run < 2; run++) {
      const opened = open(sys);
      assert.equal(from(opened, "a/b=a"), "FROM=1", call);
      assert.equal(from(opened, "a/b=b"), "FROM=2", call);
    }
    assert.equal(sys.text(INDEX), undefined);
  }
  const sys = memory({ [`${ETC}/a.json`]: spec(["a"], "1") }); // no state folder at all
  assert.equal(from(open(sys), "a/b=a"), "FROM=1");
});

test("an index that cannot be read, or is no text, is made anew", () => {
  const sys = machine({ [`${ETC}/a.json`]: spec(["a"]) });
  open(sys);
  const index = sys.text(INDEX);
  sys.put(INDEX, { kind: "file", bytes: "\xff" });
  assert.deepEqual(open(sys).names("a/b"), ["a"]);
  assert.equal(sys.text(INDEX), index);
});

test("a run that is killed at any call leaves an index that the next run can use or mend", () => {
  const tree = { [`${ETC}/a.json`]: spec(["a"], "1"), [`${ETC}/b.yaml`]: yaml("b", "2") };
  let killed = 0;
  for (let calls = 0; calls < 60; calls++) {
    const sys = machine(tree);
    sys.dieAfter(calls);
    try {
      from(open(sys), "a/b=b");
    } catch (e) {
      assert.ok(e instanceof Killed, String(e));
      killed++;
    }
    sys.heal();
    sys.clock += 60_000;
    for (let run = 0; run < 3; run++) assert.equal(from(open(sys), "a/b=b"), "FROM=2");
    assert.deepEqual(specsRead(sys), [], `${calls}`);
    assert.deepEqual(sys.names(CACHE), ["%2Fetc%2Fcdi%2Fb.yaml.json", "index"], `${calls}`);
  }
  assert.ok(killed > 10 && killed < 60, `${killed}`);
});

test("of two processes that write the index at once one leaves it to the other, and both are right", () => {
  const sys = machine({ [`${ETC}/a.json`]: spec(["a"]) });
  open(sys);
  const stale = sys.text(INDEX) ?? "";
  sys.put(`${ETC}/b.json`, spec(["b"]));
  sys.put(`${CACHE}/.index.new`, "what the other one has written so far");
  assert.deepEqual(open(sys).names("a/b"), ["a", "b"]);
  assert.equal(sys.text(INDEX), stale);
  // The other one renames an index that it made before the last change.
  sys.remove(`${CACHE}/.index.new`);
  open(sys);
  sys.put(INDEX, file(stale, { mode: 0o600 }));
  for (let run = 0; run < 2; run++) assert.deepEqual(open(sys).names("a/b"), ["a", "b"]);
  assert.notEqual(sys.text(INDEX), stale);
});

test("a folder with a control character in its name, or files with one, do without a line", () => {
  const odd = "/etc/c\tdi";
  const sys = machine({
    [`${odd}/a.json`]: spec(["a"], "1"),
    [`${ETC}/x\ty.json`]: spec(["b"]),
    [`${ETC}/c.json`]: spec(["c"]),
  });
  for (let run = 0; run < 2; run++) {
    const opened = openRegistry(sys, [ETC, odd], openIndex(sys, STATE, "1"));
    assert.deepEqual(opened.names("a/b"), ["c", "a"]);
    assert.equal(opened.problems().length, 1);
  }
});

test("names that sort differently as bytes and as UTF-16 are found all the same", () => {
  const names = ["\u{1f600}.json", "\uffee.json", "a.json", "é.json"];
  const sys = machine(Object.fromEntries(names.map((name, i) => [`${ETC}/${name}`, spec([`d${i}`], `${i}`)])));
  const expected = all(open(sys));
  for (let run = 0; run < 3; run++) assert.deepEqual(all(open(sys)), expected);
  assert.equal(from(open(sys), "a/b=d0"), "FROM=0");
});

test("with and without the index a registry says the same, whatever happened to the files", () => {
  const next = random(21);
  const pick = (n: number): number => Math.floor(next() * n);
  const sys = machine({});
  for (let round = 0; round < 120; round++) {
    const path = `${pick(2) === 0 ? ETC : RUN}/${pick(6)}.${pick(2) === 0 ? "json" : "yaml"}`;
    const device = `d${pick(5)}`;
    switch (pick(6)) {
      case 0:
        sys.remove(path);
        break;
      case 1:
        sys.put(path, "{");
        break;
      case 2:
        sys.put(path, yaml(device, `${round}`));
        break;
      case 3:
        if (sys.text(path) !== undefined) sys.overwrite(path, spec([device, `e${device}`], `${round}`));
        break;
      case 4:
        sys.put(path, file(spec([device], `${round}`), { mode: pick(3) === 0 ? 0o666 : 0o644 }));
        break;
      default:
        sys.clock += pick(300);
    }
    const indexed = open(sys);
    const plain = openRegistry(sys, [ETC, RUN]);
    assert.deepEqual(all(indexed), all(plain), `round ${round}`);
    for (const name of plain.names("a/b")) {
      assert.equal(from(indexed, `a/b=${name}`), from(plain, `a/b=${name}`), `round ${round}`);
    }
  }
});
