import assert from "node:assert/strict";
import { test } from "node:test";
import { DEFAULTS, loadSettings } from "../../src/policy/config.ts";
import { places } from "../../src/policy/gen/config-schema.ts";
import { binary, dir, fifo, file, MemorySys } from "../support/memory-files.ts";

const PATH = "/etc/sluice/config.toml";
const STATE = "/run/sluice";
const CACHE = `${STATE}/config.json`;

function machine(text?: string): MemorySys {
  return new MemorySys({ [STATE]: dir(), ...(text === undefined ? {} : { [PATH]: text }) });
}

function cached(sys: MemorySys) {
  return loadSettings(sys, PATH, { cache: { sys, dir: STATE } });
}

test("without a file the defaults hold, and they are the schema's", () => {
  assert.deepEqual(loadSettings(machine(), PATH), DEFAULTS);
  const defaults = Object.entries(places).flatMap(([path, place]) =>
    "default" in place ? [[path, place.default]] : [],
  );
  assert.deepEqual(Object.fromEntries(defaults), {
    "/runtime/runtimes": DEFAULTS.runtime.runtimes,
    "/cdi/spec_dirs": DEFAULTS.cdi.specDirs,
    "/cdi/default_kind": DEFAULTS.cdi.defaultKind,
    "/policy/trust": DEFAULTS.policy.trust,
    "/policy/trusted_namespaces": DEFAULTS.policy.trustedNamespaces,
    "/policy/unallocated": DEFAULTS.policy.unallocated,
    "/policy/privileged": DEFAULTS.policy.privileged,
    "/policy/allow": DEFAULTS.policy.allow,
    "/policy/deny": DEFAULTS.policy.deny,
    "/policy/features": DEFAULTS.policy.features,
    "/share/default_mode": DEFAULTS.share.defaultMode,
    "/daemon/nri": DEFAULTS.daemon.nri,
    "/daemon/nri_socket": DEFAULTS.daemon.nriSocket,
    "/daemon/nri_index": DEFAULTS.daemon.nriIndex,
    "/daemon/kubelet_socket": DEFAULTS.daemon.kubeletSocket,
    "/daemon/evidence_deadline": DEFAULTS.daemon.evidenceDeadline,
    "/daemon/metrics_address": DEFAULTS.daemon.metricsAddress,
    "/daemon/log_level": DEFAULTS.daemon.logLevel,
  });
});

test("without a file nothing but the look for it costs time", () => {
  const sys = machine();
  cached(sys);
  assert.deepEqual(sys.calls, [`stat ${PATH}`]);
});

test("an empty file, and one of comments, mean the defaults", () => {
  for (const text of ["", "\n\n", "# nothing\n", "\ufeff", "[cdi]\n[policy]\n"]) {
    assert.deepEqual(loadSettings(machine(text), PATH), DEFAULTS);
  }
});

test("every key is read", () => {
  const text = `
    [runtime]
    runtimes = ["/usr/local/sbin/runc", "crun"]
    [cdi]
    spec_dirs = ["/opt/cdi"]
    default_kind = "amd.com/gpu"
    [policy]
    trust = "allocated"
    trusted_namespaces = ["gpu-operator"]
    unallocated = "report"
    privileged = "refuse"
    features = ["imex", "gds"]
    [[policy.allow]]
    namespace = "team-*"
    device = "nvidia.com/gpu=*"
    mode = "mps"
    [[policy.deny]]
    device = "*=all"
    [share]
    default_mode = "mps"
    [daemon]
    nri = false
    nri_socket = "/run/nri.sock"
    nri_index = "05"
    kubelet_socket = "/var/lib/k0s/kubelet/pod-resources/kubelet.sock"
    evidence_deadline = 700
    metrics_address = "[::1]:9417"
    log_level = "debug"
  `;
  // Through JSON, since the parser's objects have no prototype.
  assert.deepEqual(JSON.parse(JSON.stringify(loadSettings(machine(text), PATH))), {
    runtime: { runtimes: ["/usr/local/sbin/runc", "crun"] },
    cdi: { specDirs: ["/opt/cdi"], defaultKind: "amd.com/gpu" },
    policy: {
      trust: "allocated",
      trustedNamespaces: ["gpu-operator"],
      unallocated: "report",
      privileged: "refuse",
      features: ["imex", "gds"],
      allow: [{ namespace: "team-*", device: "nvidia.com/gpu=*", mode: "mps" }],
      deny: [{ device: "*=all" }],
    },
    share: { defaultMode: "mps" },
    daemon: {
      nri: false,
      nriSocket: "/run/nri.sock",
      nriIndex: "05",
      kubeletSocket: "/var/lib/k0s/kubelet/pod-resources/kubelet.sock",
      evidenceDeadline: 700,
      metricsAddress: "[::1]:9417",
      logLevel: "debug",
    },
  });
});

test("a key that is set leaves the defaults of the others", () => {
  assert.deepEqual(loadSettings(machine('cdi.default_kind = "amd.com/gpu"\n'), PATH), {
    ...DEFAULTS,
    cdi: { ...DEFAULTS.cdi, defaultKind: "amd.com/gpu" },
  });
});

test("a file that somebody named must be there", () => {
  assert.throws(() => loadSettings(machine(), "/x.toml", { required: true }), {
    code: "E_CONFIG_MISSING",
    message: /^E_CONFIG_MISSING: \/x\.toml does not exist; /,
  });
});

test("a file that everyone can write to is refused, and so is its folder", () => {
  const open = machine();
  open.put(PATH, file("", { mode: 0o666 }));
  const folder = machine("");
  folder.put("/etc/sluice", dir({ mode: 0o777 }));
  assert.throws(() => loadSettings(open, PATH), {
    code: "E_CONFIG_UNTRUSTED",
    message: /; run: chmod o-w \/etc\/sluice\/config\.toml$/,
  });
  assert.throws(() => loadSettings(folder, PATH), {
    code: "E_CONFIG_UNTRUSTED",
    message: /; run: chmod o-w \/etc\/sluice$/,
  });
});

test("a file in a folder like /tmp is trusted, where nobody can replace it", () => {
  const sys = machine("");
  sys.put("/etc/sluice", dir({ mode: 0o1777 }));
  assert.deepEqual(loadSettings(sys, PATH), DEFAULTS);
});

test("the modes are checked also where the settings come from the cache", () => {
  const sys = machine("");
  cached(sys);
  sys.put("/etc/sluice", dir({ mode: 0o777 }));
  assert.throws(() => cached(sys), { code: "E_CONFIG_UNTRUSTED" });
});

test("what is no readable text file is refused", () => {
  const sys = machine();
  for (const [node, message] of [
    [fifo(), /^E_CONFIG_READ: \/etc\/sluice\/config\.toml is not readable \(EINVAL\); /],
    [dir(), /^E_CONFIG_READ: \/etc\/sluice\/config\.toml is not readable \(EINVAL\); /],
    [file("#".repeat((256 << 10) + 1)), /^E_CONFIG_READ: \/etc\/sluice\/config\.toml has more than 256 KiB; /],
    [binary(), /^E_CONFIG_SYNTAX: \/etc\/sluice\/config\.toml is not UTF-8 text; save it as UTF-8$/],
  ] as const) {
    sys.put(PATH, node);
    assert.throws(() => loadSettings(sys, PATH), { message });
  }
  sys.put(PATH, "");
  sys.fail("readText", PATH, "EACCES");
  assert.throws(() => loadSettings(sys, PATH), { code: "E_CONFIG_READ", message: /\(EACCES\)/ });
});

test("the second start reads the cached form and not the file", () => {
  const sys = machine('[cdi]\nspec_dirs = ["/opt/cdi"]\n');
  const first = cached(sys);
  assert.equal(sys.count(`readText ${PATH}`), 1);
  assert.deepEqual(cached(sys), first);
  assert.equal(sys.count(`readText ${PATH}`), 1);
  assert.equal(first.cdi.specDirs[0], "/opt/cdi");
});

test("a change of the file is seen at once, also one that keeps its size", () => {
  const sys = machine('policy.trust = "engine"\n#####');
  cached(sys);
  sys.overwrite(PATH, 'policy.trust = "allocated"\n##');
  assert.equal(cached(sys).policy.trust, "allocated");
  sys.put(PATH, 'policy.trust = "engine"\n#####');
  assert.equal(cached(sys).policy.trust, "engine");
});

test("a file that has just changed is not cached, since it can change again and keep its stamp", () => {
  const sys = machine();
  sys.put(PATH, 'share.default_mode = "mig"\n');
  assert.equal(cached(sys).share.defaultMode, "mig");
  sys.overwrite(PATH, 'share.default_mode = "mps"\n');
  assert.equal(cached(sys).share.defaultMode, "mps");
  assert.equal(sys.text(CACHE), undefined);
  sys.clock += 200;
  cached(sys);
  assert.ok(sys.text(CACHE) !== undefined);
});

test("the cached form of another file is not used", () => {
  const sys = machine('policy.trust = "allocated"\n');
  sys.put("/other.toml", "");
  cached(sys);
  assert.equal(loadSettings(sys, "/other.toml", { cache: { sys, dir: STATE } }).policy.trust, "auto");
});

test("a cache that is no JSON object is made anew", () => {
  const sys = machine('policy.trust = "allocated"\n');
  cached(sys);
  const [head = "", body = ""] = (sys.text(CACHE) ?? "").split("\n");
  assert.equal(body, '{"policy":{"trust":"allocated"}}');
  for (const broken of ["{", "null", "7", ""]) {
    sys.put(CACHE, `${head.replace(/ \d+$/, ` ${broken.length}`)}\n${broken}`);
    assert.equal(cached(sys).policy.trust, "allocated");
    assert.equal(sys.text(CACHE)?.split("\n")[1], body);
  }
});

test("a cache planted in a folder of somebody else's is not used", () => {
  const sys = machine('policy.trust = "allocated"\n');
  cached(sys);
  sys.put(CACHE, (sys.text(CACHE) ?? "").replace("allocated", "engine").replace(/ \d+\n/, " 29\n"));
  assert.equal(cached(sys).policy.trust, "engine", "the planted form is well made");
  sys.put(STATE, dir({ uid: 1000 }));
  assert.equal(cached(sys).policy.trust, "allocated");
});

test("a machine on which nothing can be stored works without a cache", () => {
  const sys = machine('policy.trust = "allocated"\n');
  sys.fail("createFile", "*", "EROFS");
  assert.equal(cached(sys).policy.trust, "allocated");
  sys.remove(STATE);
  sys.fail("mkdir", "*", "EACCES");
  assert.equal(cached(sys).policy.trust, "allocated");
});

test("a wrong file is told again at each start", () => {
  const sys = machine("[policy]\ntrust = 1\n");
  for (let start = 0; start < 2; start++) assert.throws(() => cached(sys), { code: "E_CONFIG_VALUE" });
  assert.equal(sys.text(CACHE), undefined);
});
