/** What the doctor finds on a node of Kubernetes: whether anything keeps a pod from a GPU that was not allocated to it. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { examine } from "../../src/cli/doctor.part.ts";
import type { Finding } from "../../src/cli/doctor-checks.ts";
import { type EngineNri, readEngines } from "../../src/host/engines.part.ts";
import { openMachine } from "../../src/plan/machine.ts";
import { BUILD } from "../../src/sys/version.ts";
import { HOSTS } from "../fixtures/hosts/hosts.ts";
import { dir, file, link, type MemorySys, memory, type NodeSpec, socket, type Tree } from "../support/memory-files.ts";

const PROGRAM = file("", { mode: 0o755 });
const DAEMON = "/run/sluice/sluiced.sock";
const KUBELET = "/var/lib/kubelet/pod-resources/kubelet.sock";
const NRI = "/var/run/nri/nri.sock";
const CONTAINERD = "/etc/containerd/config.toml";
const CRIO = "/etc/crio/crio.conf.d/10-nri.conf";

const REGISTERED = { version: BUILD, lacks: [], nri: { state: "registered", engine: "containerd v2.1.9" } };

interface Setting {
  readonly containerd?: string;
  readonly crio?: string;
  /** What sluiced answers; `undefined` where there is none. */
  readonly status?: object | undefined;
  readonly tree?: Readonly<Record<string, string | NodeSpec>>;
}

/** A node on which all is well, but for what is given here. */
function node(setting: Setting = {}): MemorySys {
  const { containerd, crio, tree } = setting;
  const sys = memory({
    ...HOSTS.rhel().tree,
    "/run/sluice": dir(),
    "/usr/bin/runc": PROGRAM,
    [KUBELET]: socket(),
    [NRI]: socket(),
    ...(containerd === undefined ? {} : { "/usr/bin/containerd": PROGRAM }),
    ...(crio === undefined ? {} : { "/usr/bin/crio": PROGRAM }),
    ...tree,
  } as Tree);
  sys.answers.set("/usr/bin/containerd --version", { code: 0, out: `containerd x v${containerd} y` });
  sys.answers.set("/usr/bin/crio --version", { code: 0, out: `crio version ${crio}\n` });
  const status = "status" in setting ? setting.status : REGISTERED;
  if (status !== undefined) {
    sys.put(DAEMON, socket({ mode: 0o600 }));
    sys.servers.set(DAEMON, (question) => {
      assert.deepEqual(JSON.parse(question), { v: 1, ask: "status" });
      return `${JSON.stringify({ v: 1, ...status })}\n`;
    });
  }
  return sys;
}

interface Examined {
  readonly findings: Finding[];
  readonly checked: string[];
}

function examined(sys: MemorySys): Examined {
  examine(sys, { json: true }, () => openMachine(sys));
  const result = JSON.parse(sys.output) as Examined;
  sys.output = "";
  return result;
}

/** Codes that are of Kubernetes, as `warning nri-fails-open`. */
const OF_NODES = /^(?:sluiced|nri|kubelet|pods|plugin|no-runtime-door)/;

function codes(sys: MemorySys): string[] {
  return examined(sys).findings.flatMap(({ severity, code }) => (OF_NODES.test(code) ? [`${severity} ${code}`] : []));
}

function only(sys: MemorySys, code: string): Finding {
  const found = examined(sys).findings.filter((finding) => finding.code === code);
  assert.equal(found.length, 1, code);
  return found[0] as Finding;
}

function protections(sys: MemorySys): string | undefined {
  return examined(sys).checked.find((line) => line.startsWith("what holds pods"));
}

/** Containerd's default handler is ours. */
const DOOR = `version = 3
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
pod_annotations = ['gpu.sluice.dev', '*/*']
container_annotations = ['gpu.sluice.dev', '*/*']
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = '/usr/local/bin/sluice-runtime'
`;

const REQUIRES = `version = 3
[plugins.'io.containerd.nri.v1.nri'.default_validator]
enable = true
required_plugins = ['other', 'sluice']
`;

test("a machine that no kubelet uses is told nothing of Kubernetes", () => {
  const sys = node({ containerd: "2.1.9", status: undefined });
  sys.remove("/var/lib/kubelet");
  assert.deepEqual(codes(sys), []);
  assert.equal(protections(sys), undefined);
  // Nor one whose kubelet has an engine that knows no NRI.
  assert.deepEqual(codes(node({ status: undefined })), []);
});

test("a node on which Sluice only writes CDI specs is told that nobody looks at pods, and no more", () => {
  const sys = node({ containerd: "1.7.24", status: undefined });
  assert.deepEqual(codes(sys), ["warning sluiced-away"]);
  const { what, why } = only(sys, "sluiced-away");
  assert.match(what, /: \/run\/sluice\/sluiced\.sock is not there$/);
  assert.match(why, /^no pod gets a GPU through Sluice, and no pod that has one by other ways is looked at$/);
  assert.equal(protections(sys), "what holds pods to what the kubelet allocated: nothing");
});

test("where sluiced is installed and does not run, that is an error, and what holds pods back then is told", () => {
  for (const tree of [{ "/usr/bin/sluiced": PROGRAM }, { [DAEMON]: socket() }]) {
    const sys = node({ containerd: "2.2.1", status: undefined, tree });
    assert.deepEqual(codes(sys), [
      "error sluiced-away",
      "warning nri-fails-open",
      "note no-runtime-door",
      "note plugin-not-required",
    ]);
  }
});

test("without sluiced, what becomes of pods is told by what stands in front of them", () => {
  const door = node({ containerd: "2.1.9", status: undefined, tree: { [CONTAINERD]: DOOR } });
  assert.deepEqual(codes(door), ["error sluiced-away"]);
  assert.match(only(door, "sluiced-away").why, /^sluice-runtime refuses every pod .*E_NO_EVIDENCE.*starts all others$/);
  const required = node({ containerd: "2.2.1", status: undefined, tree: { [CONTAINERD]: REQUIRES } });
  assert.match(only(required, "sluiced-away").why, /^containerd 2\.2\.1 creates no container at all without it$/);
});

test("what is on sluiced's socket and is not it, or does not answer, is told as such", () => {
  const fault = (answer: () => string): string => {
    const sys = node({ containerd: "2.1.9" });
    sys.servers.set(DAEMON, answer);
    return only(sys, "sluiced-away").what.replace(/^.*does not answer: /, "");
  };
  assert.equal(
    fault(() => "hello"),
    "what answers on /run/sluice/sluiced.sock is not sluiced",
  );
  for (const answer of ["null", "[]", "7", '{"v":1}', '{"v":1,"version":"1","nri":{"state":"x"}}', '{"nri":null}']) {
    assert.match(
      fault(() => answer),
      /gives no answer that this version understands$/,
      answer,
    );
  }
  for (const [code, said] of [
    ["ECONNREFUSED", /was killed: nobody listens$/],
    ["EPERM", /is another user's/],
    ["ETIMEDOUT", /gives no answer in time$/],
    ["EIO", /cannot be asked \(EIO\)$/],
  ] as const) {
    const sys = node({ containerd: "2.1.9" });
    sys.fail("ask", DAEMON, code);
    assert.match(only(sys, "sluiced-away").what, said, code);
  }
});

test("who may not ask sluiced is told that it was not asked, and nothing of it", () => {
  const sys = node({ containerd: "2.1.9" });
  sys.euid = 1000;
  sys.fail("ask", DAEMON, "EACCES");
  assert.ok(!codes(sys).includes("error sluiced-away"));
  assert.match(only(sys, "not-seen").what, /sluiced\.sock \(EACCES\)/);
});

test("sluiced of another version, and one that the engine has not taken, are told", () => {
  const old = node({ containerd: "2.1.9", status: { ...REGISTERED, version: "0.0.9-abc" } });
  assert.match(only(old, "sluiced-version").what, /0\.0\.9-abc/);
  const waiting = node({
    containerd: "2.1.9",
    status: { ...REGISTERED, nri: { state: "waiting", why: "no \u001b socket" } },
  });
  const { severity, what } = only(waiting, "nri-not-registered");
  assert.equal(severity, "error");
  assert.ok(what.endsWith(": no \u001b socket"), what);
  // For a person, nothing of it draws on the terminal.
  examine(waiting, { json: false }, () => openMachine(waiting));
  assert.match(waiting.output, /no \\u001b socket \[nri-not-registered\]/);
});

test("NRI that is off, as containerd 1.7 has it, comes with the lines that switch it on", () => {
  const waiting = { ...REGISTERED, nri: { state: "waiting" } };
  const old = node({ containerd: "1.7.24", status: waiting });
  assert.deepEqual(codes(old), ["error nri-not-registered", "error nri-off"]);
  assert.equal(
    only(old, "nri-off").fix,
    "in /etc/containerd/config.toml:\n[plugins.'io.containerd.nri.v1.nri']\ndisable = false\nthen: systemctl restart containerd",
  );
  const crio = node({ crio: "1.29.0", status: waiting });
  assert.match(
    only(crio, "nri-off").fix,
    /^in a file in \/etc\/crio\/crio\.conf\.d:\n\[crio\.nri\]\nenable_nri = true\n/,
  );
  assert.match(
    only(node({ containerd: "1.6.20", status: waiting }), "nri-off").fix,
    /^install containerd 1\.7 or newer/,
  );
  const door = node({
    containerd: "1.7.24",
    status: waiting,
    tree: { [CONTAINERD]: DOOR.replace("cri.v1.runtime", "grpc.v1.cri").replaceAll("cri.v1.runtime", "grpc.v1.cri") },
  });
  assert.deepEqual(codes(door), ["warning nri-not-registered", "warning nri-off"]);
});

test("neither door nor required plugin: what that means, and how to have either", () => {
  const sys = node({ containerd: "2.2.1" });
  assert.deepEqual(codes(sys), ["warning nri-fails-open", "note no-runtime-door", "note plugin-not-required"]);
  const open = only(sys, "nri-fails-open");
  assert.match(
    open.what,
    /^containerd 2\.2\.1 creates containers without sluiced while that is away, or once it took longer than 2000 ms$/,
  );
  assert.match(open.why, /is not looked at, and keeps it/);
  assert.equal(
    only(sys, "no-runtime-door").fix,
    "in /etc/containerd/config.toml:\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\n" +
      'BinaryName = "/usr/bin/sluice-runtime"\nthen: systemctl restart containerd',
  );
  assert.equal(
    only(sys, "plugin-not-required").fix,
    "in /etc/containerd/config.toml:\n[plugins.'io.containerd.nri.v1.nri'.default_validator]\nenable = true\n" +
      'required_plugins = ["sluice"]\nthen: systemctl restart containerd',
  );
  assert.equal(
    protections(sys),
    "what holds pods to what the kubelet allocated: sluiced, asked by NRI of containerd v2.1.9",
  );
});

test("an engine that cannot require a plugin is told since when it could", () => {
  const containerd = only(node({ containerd: "2.1.9" }), "plugin-not-required");
  assert.deepEqual(
    [containerd.what, containerd.fix],
    ["containerd 2.1.9 cannot require an NRI plugin", "install containerd 2.2 or newer"],
  );
  const status = { ...REGISTERED, nri: { state: "registered", engine: "cri-o 1.33.2" } };
  assert.equal(only(node({ crio: "1.33.2", status }), "plugin-not-required").fix, "install CRI-O 1.34 or newer");
});

test("with the runtime door for all pods there is nothing left to say", () => {
  const sys = node({ containerd: "2.1.9", tree: { [CONTAINERD]: DOOR } });
  assert.deepEqual(codes(sys), []);
  assert.match(
    protections(sys) ?? "",
    /, sluice-runtime, the runtime of all pods of containerd 2\.1\.9 that name none$/,
  );
});

test("the runtime door for some pods is told by their class, and the default's name counts", () => {
  const named = DOOR.replaceAll("runtimes.runc", "runtimes.gpu");
  const some = node({ containerd: "2.1.9", tree: { [CONTAINERD]: named } });
  const { what, fix } = only(some, "no-runtime-door");
  assert.match(what, /^of containerd 2\.1\.9, only pods of the runtime class of gpu go/);
  assert.match(fix, /\.containerd'?\]\ndefault_runtime_name = "gpu"\n/);
  const all = `${named}[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'gpu'\n`;
  assert.deepEqual(codes(node({ containerd: "2.1.9", tree: { [CONTAINERD]: all } })), []);
});

test("a required plugin holds, but not where a pod may except itself", () => {
  const sys = node({ containerd: "2.2.1", tree: { [CONTAINERD]: REQUIRES } });
  assert.deepEqual(codes(sys), []);
  assert.match(protections(sys) ?? "", /, NRI of containerd 2\.2\.1, which requires sluiced$/);

  const tolerant = `${REQUIRES}tolerate_missing_plugins_annotation = 'skip.example.com'\n`;
  const open = node({ containerd: "2.2.1", tree: { [CONTAINERD]: tolerant } });
  assert.deepEqual(codes(open), ["warning nri-fails-open", "note no-runtime-door", "note plugin-not-required"]);
  assert.match(only(open, "plugin-not-required").what, /but not of a pod with the annotation skip\.example\.com$/);
  for (const text of [REQUIRES.replace("true", "false"), REQUIRES.replace("'sluice'", "'sluices'")]) {
    assert.ok(
      codes(node({ containerd: "2.2.1", tree: { [CONTAINERD]: text } })).includes("warning nri-fails-open"),
      text,
    );
  }
  assert.equal(
    only(
      node({ containerd: "2.2.1", tree: { [CONTAINERD]: REQUIRES.replace("'sluice'", "'x'") } }),
      "plugin-not-required",
    ).fix.split("\n")[3],
    'required_plugins = ["other", "x", "sluice"]',
  );
});

test("CRI-O: its own names for all of this, and crun as the default of 1.31 and later", () => {
  const status = { ...REGISTERED, nri: { state: "registered", engine: "cri-o 1.36.3" } };
  const plain = node({ crio: "1.36.3", status });
  assert.deepEqual(codes(plain), ["warning nri-fails-open", "note no-runtime-door", "note plugin-not-required"]);
  assert.equal(
    only(plain, "no-runtime-door").fix,
    'in a file in /etc/crio/crio.conf.d:\n[crio.runtime]\ndefault_runtime = "sluice"\n[crio.runtime.runtimes.sluice]\n' +
      'runtime_path = "/usr/bin/sluice-runtime"\nruntime_type = "oci"\nthen: systemctl restart crio',
  );
  // The handler of a runtime that is ours by the default's name is the default.
  const renamed = '[crio.runtime.runtimes.crun]\nruntime_path = "/usr/bin/sluice-runtime"\n';
  assert.deepEqual(codes(node({ crio: "1.36.3", status, tree: { [CRIO]: renamed } })), []);
  assert.deepEqual(codes(node({ crio: "1.30.0", status, tree: { [CRIO]: renamed } })).length, 3);
  assert.match(
    only(plain, "plugin-not-required").fix,
    /\n\[crio\.nri\.default_validator\]\nnri_enable_default_validator = true\nnri_validator_required_plugins = \["sluice"\]\nthen: systemctl restart crio$/,
  );
  const text =
    '[crio.nri.default_validator]\nnri_enable_default_validator = true\nnri_validator_required_plugins = ["90-sluice"]\n';
  assert.deepEqual(codes(node({ crio: "1.36.3", status, tree: { [CRIO]: text } })), []);
  const door =
    '[crio.runtime]\ndefault_runtime = "sl"\n[crio.runtime.runtimes.sl]\nruntime_path = "/usr/bin/sluice-runtime"\n';
  assert.deepEqual(codes(node({ crio: "1.36.3", status, tree: { [CRIO]: door } })), []);
});

test("of two engines, only the one that has sluiced counts", () => {
  const status = { ...REGISTERED, nri: { state: "registered", engine: "cri-o 1.36.3" } };
  const sys = node({ containerd: "1.7.24", crio: "1.36.3", status });
  assert.ok(!codes(sys).some((code) => code.endsWith("nri-off")));
  assert.match(only(sys, "nri-fails-open").what, /^CRI-O 1\.36\.3 /);
  // While sluiced is away, the one whose settings name Sluice.
  const door =
    '[crio.runtime]\ndefault_runtime = "sl"\n[crio.runtime.runtimes.sl]\nruntime_path = "/usr/bin/sluice-runtime"\n';
  const away = node({ containerd: "2.1.9", crio: "1.36.3", status: undefined, tree: { [CRIO]: door } });
  assert.deepEqual(codes(away), ["error sluiced-away"]);
});

test("why sluiced cannot connect is told: another socket, none, or none allowed", () => {
  const waiting = { ...REGISTERED, nri: { state: "waiting" } };
  const table = "[plugins.'io.containerd.nri.v1.nri']\n";
  const other = node({
    containerd: "2.1.9",
    status: waiting,
    tree: { [CONTAINERD]: `${table}socket_path = '/run/x.sock'\n` },
  });
  assert.match(only(other, "nri-socket").fix, /^set daemon\.nri_socket = "\/run\/x\.sock"/);
  const closed = node({
    containerd: "2.1.9",
    status: waiting,
    tree: { [CONTAINERD]: `${table}disable_connections = true\n` },
  });
  assert.match(only(closed, "nri-socket").fix, /\ndisable_connections = false\n/);
  const gone = node({ containerd: "2.1.9", status: waiting });
  gone.remove(NRI);
  assert.match(only(gone, "nri-socket").what, /its socket \/var\/run\/nri\/nri\.sock is not there$/);
  // The two names of /run are one, and one that is registered needs nothing.
  const same = `${table}socket_path = '/run/nri/nri.sock'\n`;
  const linked = node({
    containerd: "2.1.9",
    status: waiting,
    tree: { [CONTAINERD]: same, "/run/nri/nri.sock": socket() },
  });
  assert.ok(!codes(linked).includes("error nri-socket"));
  gone.servers.set(DAEMON, () => JSON.stringify({ v: 1, ...REGISTERED }));
  assert.ok(!codes(gone).includes("error nri-socket"));
});

test("the kubelet's socket: missing, another's, or none", () => {
  const fault = (put: NodeSpec | undefined): string => {
    const sys = node({ containerd: "2.1.9" });
    if (put === undefined) sys.remove(KUBELET);
    else sys.put(KUBELET, put);
    return only(sys, "kubelet-socket").what;
  };
  assert.match(fault(undefined), /kubelet\.sock is not there$/);
  assert.match(fault(file("")), /kubelet\.sock is no socket$/);
  assert.match(fault(socket({ uid: 7 })), /belongs to user 7, not root$/);
});

test("an engine that waits for plugins no longer than sluiced for the kubelet is told", () => {
  const set = (timeout: string, ours = 1200): MemorySys =>
    node({
      containerd: "2.1.9",
      tree: {
        [CONTAINERD]: `[plugins.'io.containerd.nri.v1.nri']\nplugin_request_timeout = "${timeout}"\n`,
        "/etc/sluice/config.toml": `[daemon]\nevidence_deadline = ${ours}\n`,
      },
    });
  const { what, fix } = only(set("1.5s"), "nri-timeout");
  assert.match(what, /gives an NRI plugin 1500 ms, and sluiced may wait 1200 ms/);
  assert.match(fix, /^set daemon\.evidence_deadline to 900 or less .*\n.*\n.*\nplugin_request_timeout = "2s"\n/);
  assert.ok(codes(set("2s")).every((code) => !code.endsWith("nri-timeout")));
  assert.match(only(set("2s", 1500), "nri-timeout").fix, /\nplugin_request_timeout = "2500ms"\n/);
  // What is no duration is the engine's to tell.
  assert.ok(codes(set("soon")).every((code) => !code.endsWith("nri-timeout")));
});

test("a validator that rejects hooks is told: most specs have one", () => {
  const rejects = `${REQUIRES}reject_oci_hook_adjustment = true\n`;
  assert.match(
    only(node({ containerd: "2.2.1", tree: { [CONTAINERD]: rejects } }), "nri-hooks-rejected").fix,
    /^sluice cdi generate --no-hook\nor in \/etc\/containerd\/config\.toml:\n/,
  );
});

test("programs by which NRI does not start, and plugins that are asked after sluiced", () => {
  const sys = node({
    containerd: "2.1.9",
    tree: {
      [CONTAINERD]: DOOR,
      "/opt/nri/plugins/README": file("no program"),
      "/opt/nri/plugins/folder": dir(),
      "/opt/nri/plugins/10-early": PROGRAM,
      "/opt/nri/plugins/90-sluice": PROGRAM,
      "/opt/nri/plugins/95-late": link("/usr/bin/late"),
      "/opt/nri/plugins/topology policy": PROGRAM,
    },
  });
  assert.deepEqual(codes(sys), ["error nri-plugin-name", "note nri-order"]);
  const wrong = only(sys, "nri-plugin-name");
  assert.match(wrong.what, /: topology policy$/);
  assert.match(wrong.fix, /: chmod a-x '\/opt\/nri\/plugins\/topology policy'$/);
  assert.match(only(sys, "nri-order").what, / 95-late after sluiced \(90\)/);
});

test("trusting every pod is told on a node, and nothing of protections then", () => {
  const settings = { "/etc/sluice/config.toml": '[policy]\ntrust = "engine"\n' };
  const sys = node({ containerd: "2.1.9", tree: settings });
  assert.deepEqual(codes(sys), ["warning pods-trusted"]);
  assert.equal(protections(sys), "what holds pods to what the kubelet allocated: nothing, by policy.trust");
});

test("sluiced that is no NRI plugin leaves the runtime door, or nothing", () => {
  const settings = { "/etc/sluice/config.toml": "[daemon]\nnri = false\n" };
  const status = { ...REGISTERED, nri: { state: "off" } };
  assert.deepEqual(codes(node({ containerd: "1.7.24", status, tree: settings })), ["warning no-runtime-door"]);
  assert.deepEqual(codes(node({ containerd: "2.1.9", status, tree: { ...settings, [CONTAINERD]: DOOR } })), []);
});

test("of another tree nobody is asked, and sockets count for nothing", () => {
  const sys = memory({ "/host": dir(), "/run": dir() });
  for (const [path, spec] of Object.entries({
    ...HOSTS.rhel().tree,
    "/var/lib/kubelet": dir(),
    "/usr/bin/containerd": PROGRAM,
    [CONTAINERD]: REQUIRES,
    "/opt/nri/plugins/bad": PROGRAM,
  })) {
    sys.put(`/host${path}`, spec as NodeSpec);
  }
  examine(sys, { json: true, root: "/host" }, () => openMachine(sys, { root: "/host" }));
  const found = (JSON.parse(sys.output) as Examined).findings
    .map(({ code }) => code)
    .filter((code) => OF_NODES.test(code));
  assert.deepEqual(found, ["nri-plugin-name"]);
  assert.ok(!sys.calls.some((call) => call.startsWith("ask")));
});

test("what an engine does of NRI is told by its version and its settings, of which the last counts", () => {
  const main = "imports = ['/etc/containerd/conf.d/*.toml']\n[plugins.'io.containerd.nri.v1.nri']\n";
  const nri = (version: string, first: string, second = ""): EngineNri | undefined => {
    const tree = {
      "/usr/bin/containerd": PROGRAM,
      [CONTAINERD]: main + first,
      ...(second === "" ? {} : { "/etc/containerd/conf.d/10.toml": second }),
    };
    return readEngines(memory(tree), () => `containerd x v${version} y`)[0]?.nri;
  };
  const table = "[plugins.'io.containerd.nri.v1.nri']\n";
  assert.equal(nri("1.6.36", "disable = false")?.state, "none");
  assert.equal(nri("1.7.24", "")?.state, "off");
  assert.equal(nri("1.7.24", "disable = false")?.state, "on");
  assert.equal(nri("2.0.0", "")?.state, "on");
  assert.equal(nri("2.0.0", "disable = false", `${table}disable = true`)?.state, "off");
  assert.equal(nri("2.0.0", "", 'disabled_plugins = ["io.containerd.nri.v1.nri"]')?.state, "off");
  // 1.7 takes the whole table of the last file, 2.0 merges them.
  const path = "disable = false\nplugin_path = '/a'";
  assert.equal(nri("1.7.24", path, `${table}disable = false`)?.pluginDir, "/opt/nri/plugins");
  assert.equal(nri("2.0.0", path, `${table}disable = false`)?.pluginDir, "/a");
  assert.equal(nri("1.7.24", "disable = false", `${table}plugin_path = '/a'`)?.state, "off");
  // A validator in the settings of an engine that has none holds nobody back.
  assert.deepEqual(nri("2.1.9", `${REQUIRES.split("\n").slice(1).join("\n")}`)?.validator, undefined);
  const durations: readonly (readonly [string, number])[] = [
    ["1m30s", 90_000],
    ["1.5s", 1500],
    ["250ms", 250],
    ["2", 2000],
    ["-1s", 2000],
  ];
  for (const [text, ms] of durations) {
    assert.equal(nri("2.0.0", `plugin_request_timeout = '${text}'`)?.requestTimeout, ms, text);
  }
  for (const odd of ["socket_path = 7", "default_validator = 7", "disable = 'no'", "plugin_request_timeout = 2"]) {
    const found = nri("2.0.0", odd);
    assert.deepEqual([found?.state, found?.socket, found?.requestTimeout], ["on", NRI, 2000], odd);
  }
});
