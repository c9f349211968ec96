import assert from "node:assert/strict";
import { test } from "node:test";
import { applyEdits } from "../../src/oci/apply.ts";
import { readBundle, writeConfig } from "../../src/oci/bundle.ts";
import { locateJsonError } from "../../src/oci/json-error.part.ts";
import { patchJson } from "../../src/oci/lossless.ts";
import type { Files, Stat } from "../../src/sys/sys.ts";
import { fullConfig } from "../fixtures/oci/full-config.ts";
import { binary, dir, fifo, file, Killed, link, type MemorySys, memory } from "../support/memory-files.ts";

const CONFIG = "/b/config.json";
const TEMPORARY = "/b/.config.json.sluice";
const OLD = '{"ociVersion": "1.2.0"}';
const NEW = '{"ociVersion": "1.2.0", "hostname": "x"}';

function readText(text: string): unknown {
  return readBundle(memory({ [CONFIG]: text }), "/b").config;
}

test("a bundle is read with the text as it is, the parsed tree and the file's owner and mode", () => {
  const sys = memory({ [CONFIG]: file(fullConfig, { mode: 0o640, uid: 7, gid: 8 }) });
  const bundle = readBundle(sys, "/b");
  assert.equal(bundle.path, CONFIG);
  assert.equal(bundle.text, fullConfig);
  assert.deepEqual(bundle.config, JSON.parse(fullConfig));
  assert.deepEqual([bundle.stat.mode, bundle.stat.uid, bundle.stat.gid], [0o640, 7, 8]);
  assert.deepEqual(sys.calls, [`lstat ${CONFIG}`, `readText ${CONFIG}`]);
});

test("a config.json with every field of the specification comes out equal but for the edits", () => {
  const sys = memory({ [CONFIG]: fullConfig });
  const bundle = readBundle(sys, "/b");
  const config = applyEdits(bundle.config, [
    {
      env: ["A=3", "NEW=1"],
      deviceNodes: [{ path: "/dev/gpu0", type: "c", major: 195, minor: 0, fileMode: 0o666, uid: 0, gid: 44 }],
      netDevices: [{ hostInterfaceName: "eth1", name: "c1" }],
      mounts: [{ hostPath: "/lib/x", containerPath: "/lib/x", options: ["ro", "bind"] }],
      hooks: [{ hookName: "createContainer", path: "/h", env: ["E=1"] }],
      intelRdt: { closID: "gpu" },
      additionalGids: [44, 107],
    },
  ]);
  writeConfig(sys, bundle, patchJson(bundle.text, bundle.config, config));

  let expected = fullConfig;
  const edit = (from: string, to: string): void => {
    assert.equal(expected.split(from).length, 2, from);
    expected = expected.replace(from, () => to);
  };
  edit('"additionalGids": [ 5, 44 ]', '"additionalGids": [ 5, 44, 107 ]');
  edit('"A=1", "A=2",', '"A=1", "A=3",');
  edit('\\"y\\"\\\\"\n    ]', '\\"y\\"\\\\",\n      "NEW=1"\n    ]');
  // Mounts: /proc, /dev (one level), /lib/x (two), /deep/er/mount (three), each with its own text, at four places.
  const start = expected.indexOf('{"destination": "/proc"');
  const end = expected.indexOf("\n  ],", start);
  const deepAt = expected.indexOf('{\n      "destination": "/deep');
  const devAt = expected.indexOf('{"destination": "/dev"');
  const deep = expected.slice(deepAt, expected.lastIndexOf("}", devAt) + 1);
  const dev = expected.slice(devAt, end);
  const lib = '{"destination":"/lib/x","source":"/lib/x","options":["ro","bind","idmap"]}';
  const mounts = [expected.slice(start, expected.indexOf("}", start) + 1), dev, lib, deep].join(",\n    ");
  expected = expected.slice(0, start) + mounts + expected.slice(end);
  edit(
    '"args": ["-mount"], "env": ["key1=value1"]} ]',
    '"args": ["-mount"], "env": ["key1=value1"]}, {"path":"/h","env":["E=1"]} ]',
  );
  edit(
    '"minor": 0, "access": "r"}\n',
    '"minor": 0, "access": "r"},\n        {"allow":true,"type":"c","major":195,"minor":0,"access":"rwm"}\n',
  );
  edit(
    '"x-unknown": 18446744073709551615}\n    ],\n    "netDevices"',
    '"x-unknown": 18446744073709551615},\n      ' +
      '{"path":"/dev/gpu0","type":"c","major":195,"minor":0,"fileMode":438,"uid":0,"gid":44}\n    ],\n    "netDevices"',
  );
  edit('"x-unknown": 9007199254740993}}', '"x-unknown": 9007199254740993},"eth1": {"name":"c1"}}');
  const rdt = expected.indexOf('"closID": "guaranteed_group"');
  expected = `${expected.slice(0, rdt)}"closID": "gpu"${expected.slice(expected.indexOf("\n    }", rdt))}`;
  assert.equal(sys.text(CONFIG), expected);
});

test("a bundle without a config.json is refused by its own name", () => {
  assert.throws(() => readBundle(memory({ "/b": dir() }), "/b"), {
    code: "E_BUNDLE_MISSING",
    message: /"\/b\/config.json"/,
  });
  assert.throws(() => readBundle(memory(), "/none"), { code: "E_BUNDLE_MISSING" });
  const dangling = memory({ [CONFIG]: link("/gone.json") });
  assert.throws(() => readBundle(dangling, "/b"), { code: "E_BUNDLE_MISSING", message: /link to "\/gone\.json"/ });
});

test("only a regular file of a bounded size and in UTF-8 is read", () => {
  assert.throws(() => readBundle(memory({ [CONFIG]: fifo() }), "/b"), { code: "E_BUNDLE_FILE", message: /"fifo"/ });
  assert.throws(() => readBundle(memory({ [CONFIG]: dir() }), "/b"), { code: "E_BUNDLE_FILE", message: /"dir"/ });
  assert.throws(() => readBundle(memory({ [CONFIG]: binary() }), "/b"), { code: "E_BUNDLE_UTF8" });
  const loop = memory({ [CONFIG]: link("config.json") });
  assert.throws(() => readBundle(loop, "/b"), { code: "E_BUNDLE_FILE", message: /more than 8 links/ });

  const locked = memory({ [CONFIG]: OLD });
  locked.fail("readText", CONFIG, "EACCES");
  assert.throws(() => readBundle(locked, "/b"), { code: "E_BUNDLE_FILE", message: /EACCES/ });
  const grown = memory({ [CONFIG]: OLD });
  grown.fail("readText", CONFIG, "EFBIG");
  assert.throws(() => readBundle(grown, "/b"), { code: "E_BUNDLE_SIZE", message: /16777216 bytes/ });

  const sys = memory({ [CONFIG]: OLD });
  const huge: Files = {
    lstat: (path) => ({ ...(sys.lstat(path) as Stat), size: 16 * 1024 * 1024 + 1 }),
    readText: () => assert.fail("a file that is too large must not be read"),
    readBytes: (path, offset, length) => sys.readBytes(path, offset, length),
    stat: (path) => sys.stat(path),
    list: (path) => sys.list(path),
    stamps: (path, names) => sys.stamps(path, names),
    readLink: (path) => sys.readLink(path),
  };
  assert.throws(() => readBundle(huge, "/b"), { code: "E_BUNDLE_SIZE" });
});

test("another file can stand in for config.json, but not an open descriptor", () => {
  const sys = memory({ "/etc/other.json": OLD });
  assert.equal(readBundle(sys, "/b", "/etc/other.json").path, "/etc/other.json");
  for (const path of ["/dev/fd/3", "/proc/self/fd/3"]) {
    assert.throws(() => readBundle(sys, "/b", path), { code: "E_BUNDLE_FILE", message: /open file/ });
  }
});

test("text that is not JSON is refused with the line and the column of the fault", () => {
  const cases: [string, RegExp][] = [
    ["", /line 1, column 1: the text ends where a value must come/],
    ['{"a": 1,}', /line 1, column 9: a key in quotes must come here/],
    ['{\n  "a" 1\n}', /line 2, column 7: a colon must come here/],
    ['{\r\n"a": [1 2]}', /line 2, column 9: a comma or \] must come here/],
    ["{'a': 1}", /line 1, column 2: a key in quotes or \} must come here/],
    ['{"a": 01}', /line 1, column 7: a value must come here/],
    ['{"a": NaN}', /line 1, column 7: a value must come here/],
    ['{"a": "x\ny"}', /line 1, column 9: a control character must be escaped/],
    ['{"a": "\\x"}', /line 1, column 8: this escape does not exist/],
    ['{"a": "\\u12"}', /line 1, column 8: this escape/],
    ['{"a": "x', /line 1, column 7: this string has no end/],
    ['{"a": [1, 2', /line 1, column 12: the text ends where a comma or \] must come/],
    ["{} {}", /line 1, column 4: there is more behind the end/],
    ['{"a": [}', /line 1, column 8: a value or \] must come here/],
    ['{"a": 1 // comment\n}', /line 1, column 9: a comma or \} must come here/],
    ["\ufeff{}", /line 1, column 1: a byte order mark/],
    ['{"a": [1,\u00a02]}', /line 1, column 10: a value must come here/],
  ];
  for (const [text, message] of cases) {
    assert.throws(() => readText(text), { code: "E_BUNDLE_JSON", message });
  }
});

test("the fault is found exactly where a text that was good is broken", () => {
  assert.equal(locateJsonError(fullConfig), undefined);
  // Cut off anywhere, a text is not JSON any more; a stray character is found at its place.
  for (let i = 0; i < fullConfig.length - 2; i += 97) {
    const cut = fullConfig.slice(0, i);
    assert.ok(locateJsonError(cut) !== undefined, cut.slice(-40));
  }
  const at = fullConfig.indexOf('"rlimits"');
  const error = locateJsonError(`${fullConfig.slice(0, at)}?${fullConfig.slice(at)}`);
  assert.deepEqual(error, { line: 31, column: 5, what: "a key in quotes must come here" });
});

test("nesting without end is an error and not a crash", () => {
  const depth = 200_000;
  assert.throws(() => readText("[".repeat(depth)), { code: "E_BUNDLE_JSON" });
  assert.throws(() => readText(`{"x":${"[".repeat(depth)}}`), { code: "E_BUNDLE_JSON" });
});

test("a field that is needed and has the wrong type is named by its JSON pointer", () => {
  const cases: [string, RegExp][] = [
    ["[]", /the file must be an object/],
    ["null", /the file must be an object/],
    ['{"process": 1}', /"\/process" must be an object/],
    ['{"process": {"env": "A=1"}}', /"\/process\/env" must be an array/],
    ['{"process": {"env": ["A=1", 2]}}', /"\/process\/env\/1" must be a string/],
    ['{"process": {"user": []}}', /"\/process\/user" must be an object/],
    ['{"process": {"user": {"uid": "0"}}}', /"\/process\/user\/uid" must be a number/],
    ['{"process": {"user": {"additionalGids": [null]}}}', /"\/process\/user\/additionalGids\/0" must be a number/],
    ['{"mounts": {}}', /"\/mounts" must be an array/],
    ['{"mounts": [{"destination": "/a"}, {}]}', /"\/mounts\/1\/destination" must be a string/],
    ['{"mounts": [{"destination": "/a", "options": [1]}]}', /"\/mounts\/0\/options\/0" must be a string/],
    ['{"hooks": {"poststop": [null]}}', /"\/hooks\/poststop\/0" must be an object/],
    ['{"hooks": {"prestart": [{"path": "/a", "timeout": "1"}]}}', /"\/hooks\/prestart\/0\/timeout" must be a number/],
    ['{"annotations": {"a/b~c": 1}}', /"\/annotations\/a~1b~0c" must be a string/],
    ['{"linux": "x"}', /"\/linux" must be an object/],
    ['{"linux": {"devices": [{"path": "/a", "major": "1"}]}}', /"\/linux\/devices\/0\/major" must be a number/],
    ['{"linux": {"netDevices": {"eth0": "x"}}}', /"\/linux\/netDevices\/eth0" must be an object/],
    ['{"linux": {"namespaces": [{}]}}', /"\/linux\/namespaces\/0\/type" must be a string/],
    ['{"linux": {"resources": {"devices": [{"allow": 1}]}}}', /"\/linux\/resources\/devices\/0\/allow" must be a bool/],
    ['{"linux": {"intelRdt": true}}', /"\/linux\/intelRdt" must be an object/],
  ];
  for (const [text, message] of cases) {
    assert.throws(() => readText(text), { code: "E_BUNDLE_FIELD", message });
  }
});

test("null counts as absent, as Go writes it, and what Sluice does not read may be anything", () => {
  const text =
    '{"process": {"env": null, "args": 7}, "mounts": null, "hooks": null, "linux": {"seccomp": 1}, "root": []}';
  const config = readBundle(memory({ [CONFIG]: text }), "/b").config;
  const edited = applyEdits(config, [
    {
      env: ["A=1"],
      mounts: [{ hostPath: "/a", containerPath: "/b" }],
      hooks: [{ hookName: "prestart", path: "/h", env: ["A=1"] }],
      additionalGids: [5],
      deviceNodes: [{ path: "/dev/a", type: "c", major: 1, minor: 2 }],
    },
  ]);
  assert.deepEqual(edited.process?.env, ["A=1"]);
  assert.equal(edited.mounts?.length, 1);
  assert.equal(edited.hooks?.prestart?.length, 1);
});

test("a config.json is replaced by way of a temporary file that gets the old owner and mode", () => {
  const sys = memory({ [CONFIG]: file(OLD, { mode: 0o640, uid: 7, gid: 8 }) });
  const bundle = readBundle(sys, "/b");
  sys.calls.length = 0;
  writeConfig(sys, bundle, NEW);
  assert.deepEqual(sys.calls, [
    `createFile ${TEMPORARY}`,
    `lstat ${TEMPORARY}`,
    `chown ${TEMPORARY}`,
    `chmod ${TEMPORARY}`,
    `rename ${TEMPORARY}`,
  ]);
  assert.equal(sys.text(CONFIG), NEW);
  const stat = sys.lstat(CONFIG);
  assert.deepEqual([stat?.mode, stat?.uid, stat?.gid], [0o640, 7, 8]);
  assert.deepEqual(sys.names("/b"), ["config.json"]);
});

test("an owner and a mode that are right already are left alone", () => {
  const sys = memory({ [CONFIG]: file(OLD, { mode: 0o600 }) });
  const bundle = readBundle(sys, "/b");
  sys.calls.length = 0;
  writeConfig(sys, bundle, NEW);
  assert.deepEqual(sys.calls, [`createFile ${TEMPORARY}`, `lstat ${TEMPORARY}`, `rename ${TEMPORARY}`]);
});

test("where config.json is a link, the file behind it is replaced and the link stays", () => {
  const sys = memory({
    [CONFIG]: link("../store/a.json"),
    "/store/a.json": link("/data/real.json"),
    "/data/real.json": file(OLD, { mode: 0o644 }),
  });
  const bundle = readBundle(sys, "/b");
  assert.equal(bundle.path, "/data/real.json");
  writeConfig(sys, bundle, NEW);
  assert.equal(sys.readLink(CONFIG), "../store/a.json");
  assert.equal(sys.text("/data/real.json"), NEW);
  assert.equal(sys.text(CONFIG), NEW);
  assert.deepEqual(sys.names("/data"), ["real.json"]);
});

test("a kill at any system call leaves the old or the new file, and the next run leaves nothing else", () => {
  const fresh = (): MemorySys => memory({ [CONFIG]: file(OLD, { mode: 0o640, uid: 7, gid: 8 }) });
  let survived = false;
  for (let calls = 0; !survived; calls++) {
    const sys = fresh();
    const bundle = readBundle(sys, "/b");
    sys.dieAfter(calls);
    try {
      writeConfig(sys, bundle, NEW);
      survived = true;
    } catch (thrown) {
      assert.ok(thrown instanceof Killed);
    }
    sys.heal();
    const text = sys.text(CONFIG);
    assert.equal(text, survived ? NEW : OLD);
    const left = sys.names("/b");
    assert.deepEqual(left, calls === 0 || survived ? ["config.json"] : [".config.json.sluice", "config.json"]);

    // The engine tries again.
    const again = readBundle(sys, "/b");
    writeConfig(sys, again, `${NEW} `);
    assert.equal(sys.text(CONFIG), `${NEW} `);
    assert.deepEqual(sys.names("/b"), ["config.json"]);
    assert.equal(sys.lstat(CONFIG)?.mode, 0o640);
    assert.ok(calls < 10);
  }
});

test("a failure at any step keeps the old file, removes the temporary one and reports the first error", () => {
  const steps: [string, string, string][] = [
    ["createFile", "ENOSPC", "E_BUNDLE_WRITE"],
    ["createFile", "EEXIST", "E_BUNDLE_WRITE"],
    ["lstat", "EIO", "E_BUNDLE_WRITE"],
    ["chown", "EPERM", "E_BUNDLE_OWNER"],
    ["chmod", "EPERM", "E_BUNDLE_WRITE"],
    ["rename", "EROFS", "E_BUNDLE_WRITE"],
  ];
  for (const [call, errno, code] of steps) {
    for (const cleanUpFails of [false, true]) {
      const sys = memory({ [CONFIG]: file(OLD, { uid: 7, mode: 0o640 }) });
      const bundle = readBundle(sys, "/b");
      sys.fail(call, TEMPORARY, errno);
      if (cleanUpFails) sys.fail("unlink", TEMPORARY, "EIO");
      const message = call === "createFile" && errno === "EEXIST" ? /E(NOENT|IO)/ : new RegExp(errno);
      assert.throws(() => writeConfig(sys, bundle, NEW), { code, message });
      assert.equal(sys.text(CONFIG), OLD);
      const isLeft = cleanUpFails && call !== "createFile";
      assert.deepEqual(sys.names("/b"), isLeft ? [".config.json.sluice", "config.json"] : ["config.json"]);
    }
  }
});

test("a temporary file that another process made in between is left to it", () => {
  const sys = memory({ [CONFIG]: OLD, [TEMPORARY]: "another's" });
  const bundle = readBundle(sys, "/b");
  sys.fail("createFile", TEMPORARY, "EEXIST");
  const unlink = sys.unlink.bind(sys);
  let unlinks = 0;
  sys.unlink = (path) => {
    unlinks++;
    unlink(path);
    sys.put(TEMPORARY, "another's");
  };
  assert.throws(() => writeConfig(sys, bundle, NEW), { code: "E_BUNDLE_WRITE", message: /EEXIST/ });
  assert.equal(unlinks, 1);
  assert.equal(sys.text(TEMPORARY), "another's");
});
