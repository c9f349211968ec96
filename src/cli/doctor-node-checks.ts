/** What can be wrong on a node of Kubernetes: whether anything keeps a pod from a GPU that was not allocated to it. */

import { compareVersions, type Engine } from "../host/engines.part.ts";
import { BUILD } from "../sys/version.ts";
import type { Finding } from "./doctor-checks.ts";
import type { Facts } from "./doctor-facts.ts";
import type { DaemonStatus, NodeFacts } from "./doctor-node-facts.ts";
import { list, word } from "./words.ts";

type Nri = NonNullable<Engine["nri"]>;

/** An engine whose containers a kubelet may start. */
interface NodeEngine extends Engine {
  readonly nri: Nri;
}

interface Node {
  readonly facts: NodeFacts;
  /** Of those that know NRI the one that sluiced is registered with, or else those that are set up for Sluice, or else all. */
  readonly engines: readonly NodeEngine[];
}

/** What part of the time that an engine gives to a plugin sluiced gives to the kubelet at most (src/nri/door.ts). */
const KUBELETS_SHARE = 0.6;

/** Under which name sluiced registers; the engine takes it with and without its index. */
const REQUIRED = /^(?:\d\d-)?sluice$/;

export function checkNode({ node, engines }: Facts): Finding[] {
  const all = engines.filter((engine): engine is NodeEngine => engine.nri !== undefined);
  if (node === undefined || all.length === 0) return [];
  const status = statusOf(node);
  const registered = all.filter(({ name }) => status?.engine?.replace("-", "").startsWith(name));
  // Docker brings its containerd to nodes of CRI-O.
  const ours = all.filter((engine) => engine.runtimes.length > 0 || isRequired(engine));
  const on: Node = { facts: node, engines: [registered, ours, all].find((some) => some.length > 0) ?? all };
  const isUsed = isInUse(on);
  return [
    ...checkDaemon(on, isUsed),
    ...checkTrust(node, isUsed),
    ...(isUsed ? [...checkKubelet(node), ...on.engines.flatMap((engine) => checkEngine(on, engine))] : []),
    ...on.engines.flatMap((engine) => checkPluginNames(node, engine)),
  ];
}

function statusOf({ daemon }: NodeFacts): DaemonStatus | undefined {
  return daemon !== undefined && "version" in daemon ? daemon : undefined;
}

/** Whether pods are meant to go through Sluice here, or it only writes this machine's CDI specs. */
function isInUse({ facts, engines }: Node): boolean {
  return facts.hasDaemon || engines.some((engine) => engine.runtimes.length > 0 || isRequired(engine));
}

/** Whether the runtime of pods that name none is ours. */
function hasDoor({ runtimes, defaultRuntime }: Engine): boolean {
  return runtimes.some(({ name }) => name === defaultRuntime);
}

function isRequired({ nri: { validator } }: NodeEngine): boolean {
  return validator?.required.some((name) => REQUIRED.test(name)) ?? false;
}

function named({ title, version }: Engine): string {
  return version === undefined ? title : `${title} ${version}`;
}

/** Milliseconds as engines' settings have them. */
function duration(ms: number): string {
  return ms % 1000 === 0 ? `${ms / 1000}s` : `${ms}ms`;
}

// --- sluiced and the kubelet ---

function checkDaemon({ facts, engines }: Node, isUsed: boolean): Finding[] {
  const { daemon, settings } = facts;
  if (daemon === undefined) return [];
  if ("fault" in daemon) {
    const required = engines.filter(isRequired);
    const doors = engines.filter((engine) => engine.runtimes.length > 0);
    const consequence =
      required.length > 0
        ? `${required.map(named).join(", ")} creates no container at all without it`
        : doors.length > 0 && facts.trust !== "engine"
          ? "sluice-runtime refuses every pod that asks for or carries a GPU (E_NO_EVIDENCE), and starts all others"
          : "no pod gets a GPU through Sluice, and no pod that has one by other ways is looked at";
    return [
      {
        code: "sluiced-away",
        severity: isUsed ? "error" : "warning",
        what: `sluiced, which asks the kubelet what it allocated, does not answer: ${daemon.fault}`,
        why: consequence,
        fix: "systemctl enable --now sluiced   # docs/kubernetes.md says how to install it\njournalctl -u sluiced -e   # why it does not run",
      },
    ];
  }
  const findings: Finding[] = [];
  if (daemon.version !== BUILD) {
    findings.push({
      code: "sluiced-version",
      severity: "warning",
      what: `sluiced is of version ${daemon.version}, and this is sluice ${BUILD}`,
      why: "the two may not understand each other, or judge otherwise: one of them was upgraded alone, or not restarted",
      fix: "install both of one version, then: systemctl restart sluiced",
    });
  }
  if (settings.nri && daemon.nri !== "registered") {
    findings.push({
      code: "nri-not-registered",
      severity: engines.some((engine) => !hasDoor(engine)) ? "error" : "warning",
      what: `sluiced is not registered with the engine's NRI: ${daemon.why ?? "it is on the way"}`,
      why: "the engine creates containers without asking it: no pod is given a GPU by NRI, and none is looked at",
      fix: "journalctl -u sluiced -e   # what it tries; what follows here may be why",
    });
  }
  return findings;
}

function checkTrust({ trust }: NodeFacts, isUsed: boolean): Finding[] {
  if (trust !== "engine" || !isUsed) return [];
  return [
    {
      code: "pods-trusted",
      severity: "warning",
      what: 'policy.trust is "engine" on a node of Kubernetes',
      why: "any pod gets any GPU that it names in an annotation or a variable, whatever the kubelet allocated",
      fix: 'take policy.trust out of the settings, or set it to "auto"',
    },
  ];
}

function checkKubelet({ kubeletFault, settings, trust }: NodeFacts): Finding[] {
  if (kubeletFault === undefined || trust === "engine") return [];
  return [
    {
      code: "kubelet-socket",
      severity: "error",
      what: `the socket of the kubelet's PodResources cannot be used: ${kubeletFault}`,
      why: "nobody says what was allocated, so every pod that asks for a GPU is refused (E_NO_EVIDENCE)",
      fix:
        "systemctl status kubelet\nwhere the kubelet has another --root-dir than " +
        `${settings.kubeletSocket.replace(/\/pod-resources\/[^/]*$/, "")}, set daemon.kubelet_socket`,
    },
  ];
}

// --- NRI of an engine ---

function checkEngine(node: Node, engine: NodeEngine): Finding[] {
  const { facts } = node;
  if (!facts.settings.nri) return hasDoor(engine) ? [] : [noDoor(node, engine, "warning", NO_NRI)];
  if (engine.nri.state === "off" || engine.nri.state === "none") return [checkOff(node, engine)];
  return [
    ...checkSocket(facts, engine),
    ...checkTimeout(facts, engine),
    ...checkHooks(engine),
    ...(facts.trust === "engine" || engine.nri.state === undefined ? [] : checkProtections(node, engine)),
    ...checkOrder(facts, engine),
  ];
}

const NO_NRI = "daemon.nri is off, so nobody looks at pods that do not go through it";

/** How to set a key in an engine's settings, as lines; each table with its keys. */
function set(engine: Engine, table: Readonly<Record<"containerd" | "crio", string>>, ...keys: string[]): string {
  const [file, service] =
    engine.name === "crio"
      ? ["a file in /etc/crio/crio.conf.d", "crio"]
      : ["/etc/containerd/config.toml", "containerd"];
  return `in ${file}:\n[${engine.name === "crio" ? table.crio : table.containerd}]\n${keys.join("\n")}\nthen: systemctl restart ${service}`;
}

const NRI_TABLE = { containerd: "plugins.'io.containerd.nri.v1.nri'", crio: "crio.nri" };
const VALIDATOR_TABLE = {
  containerd: "plugins.'io.containerd.nri.v1.nri'.default_validator",
  crio: "crio.nri.default_validator",
};

function checkOff({ facts }: Node, engine: NodeEngine): Finding {
  const isCrio = engine.name === "crio";
  const isNone = engine.nri.state === "none";
  return {
    code: "nri-off",
    severity: statusOf(facts) === undefined || hasDoor(engine) ? "warning" : "error",
    what: isNone ? `${named(engine)} has no NRI` : `NRI is not switched on in ${named(engine)}`,
    why: hasDoor(engine)
      ? "sluiced is asked about no container; sluice-runtime does what is to be done"
      : "sluiced is asked about no container: no pod gets a GPU from it, and none is looked at",
    fix: isNone
      ? `install ${isCrio ? "CRI-O 1.26" : "containerd 1.7"} or newer, or make sluice-runtime the runtime of all pods`
      : set(engine, NRI_TABLE, isCrio ? "enable_nri = true" : "disable = false"),
  };
}

function checkSocket({ settings, nri: found, daemon }: NodeFacts, engine: NodeEngine): Finding[] {
  const { socket, isOpen } = engine.nri;
  const there = found.find(({ engine: name }) => name === engine.name);
  // One that the engine itself started needs no socket.
  if (there?.plugins.some((name) => REQUIRED.test(name))) return [];
  if (daemon !== undefined && "version" in daemon && daemon.nri === "registered") return [];
  const isCrio = engine.name === "crio";
  const why = "sluiced cannot register, and is asked about no container";
  const plain = (path: string): string => path.replace(/^\/var\/run\//, "/run/");
  if (!isOpen) {
    const key = isCrio ? "nri_disable_connections" : "disable_connections";
    const what = `NRI of ${named(engine)} takes no plugins that connect (${key})`;
    return [{ code: "nri-socket", severity: "error", what, why, fix: set(engine, NRI_TABLE, `${key} = false`) }];
  }
  if (plain(socket) !== plain(settings.nriSocket)) {
    return [
      {
        code: "nri-socket",
        severity: "error",
        what: `${named(engine)} takes NRI plugins on ${socket}, and sluiced tries ${settings.nriSocket}`,
        why,
        fix: `set daemon.nri_socket = "${socket}" in Sluice's settings; then: systemctl restart sluiced`,
      },
    ];
  }
  if (there?.hasSocket !== false) return [];
  return [
    {
      code: "nri-socket",
      severity: "error",
      what: `NRI of ${named(engine)} is switched on, and its socket ${socket} is not there`,
      why,
      fix: `systemctl restart ${isCrio ? "crio" : "containerd"}   # it was not since NRI was switched on, or does not run`,
    },
  ];
}

function checkTimeout({ settings: { evidenceDeadline } }: NodeFacts, engine: NodeEngine): Finding[] {
  const { requestTimeout } = engine.nri;
  const most = Math.floor(requestTimeout * KUBELETS_SHARE);
  if (most >= evidenceDeadline) return [];
  const key = engine.name === "crio" ? "nri_plugin_request_timeout" : "plugin_request_timeout";
  const needed = duration(Math.ceil(evidenceDeadline / KUBELETS_SHARE / 500) * 500);
  return [
    {
      code: "nri-timeout",
      severity: "warning",
      what: `${named(engine)} gives an NRI plugin ${requestTimeout} ms, and sluiced may wait ${evidenceDeadline} ms for the kubelet`,
      why: "sluiced answers in time all the same, and so waits less: where the kubelet is slow, containers are refused that need not be",
      fix:
        `set daemon.evidence_deadline to ${Math.max(most, 10)} or less in Sluice's settings, or\n` +
        set(engine, NRI_TABLE, `${key} = "${needed}"`),
    },
  ];
}

function checkHooks(engine: NodeEngine): Finding[] {
  if (engine.nri.validator?.rejectsHooks !== true) return [];
  const key = engine.name === "crio" ? "nri_validator_reject_oci_hook_adjustment" : "reject_oci_hook_adjustment";
  return [
    {
      code: "nri-hooks-rejected",
      severity: "warning",
      what: `NRI of ${named(engine)} lets no plugin add hooks (${key})`,
      why: "a container whose CDI spec has a hook is refused; those of sluice cdi generate have one, which links the driver's libraries",
      fix: `sluice cdi generate --no-hook\nor ${set(engine, VALIDATOR_TABLE, `${key} = false`)}`,
    },
  ];
}

// --- What holds a container back that sluiced was not asked about ---

/**
 * NRI goes on without a plugin that is away or late. What closes that is the runtime door, which every container goes
 * through, or that NRI requires the plugin; versions that can do so also hold back the one container at which it was late,
 * since sluiced is a validator there (src/nri/door.ts).
 */
function checkProtections(node: Node, engine: NodeEngine): Finding[] {
  const { requestTimeout, validator } = engine.nri;
  if (hasDoor(engine) || (isRequired(engine) && validator?.toleratedBy === undefined)) return [];
  // CRI-O starts a container whatever a plugin says of it then.
  const later = engine.name === "crio" ? "" : ". Only what sluiced is back in time for is looked at before it starts";
  return [
    {
      code: "nri-fails-open",
      severity: "warning",
      what: `${named(engine)} creates containers without sluiced while that is away, or once it took longer than ${requestTimeout} ms`,
      why:
        "a container that asks for a GPU starts without it then, which its program sees; one that has a GPU's node by other " +
        `ways (a hostPath, another NRI plugin) is not looked at, and keeps it${later}`,
      fix: "make sluice-runtime the runtime of all pods, or have NRI require the plugin: what follows says how",
    },
    noDoor(
      node,
      engine,
      "note",
      "it looks at each container before that starts, and refuses what nobody vouches for, also while sluiced is away",
    ),
    notRequired(engine),
  ];
}

function noDoor({ facts }: Node, engine: NodeEngine, severity: "note" | "warning", why: string): Finding {
  const own = engine.runtimes.map((runtime) => runtime.name);
  return {
    code: "no-runtime-door",
    severity,
    what:
      own.length === 0
        ? `pods of ${named(engine)} do not go through sluice-runtime`
        : `of ${named(engine)}, only pods of the runtime class of ${own.join(", ")} go through sluice-runtime`,
    why,
    fix: makeDefault(engine, facts.runtimePath),
  };
}

function makeDefault(engine: NodeEngine, program: string): string {
  const { name, version, runtimes, defaultRuntime = "runc" } = engine;
  const isOld = version !== undefined && compareVersions(version, "2") < 0;
  const cri = `plugins.'${isOld ? "io.containerd.grpc.v1.cri" : "io.containerd.cri.v1.runtime"}'.containerd`;
  const tables = { containerd: cri, crio: "crio.runtime" };
  const [own] = runtimes;
  if (own !== undefined) return set(engine, tables, `default_runtime${name === "crio" ? "" : "_name"} = "${own.name}"`);
  if (name === "crio") {
    const handler = ["[crio.runtime.runtimes.sluice]", `runtime_path = "${program}"`, 'runtime_type = "oci"'];
    return set(engine, tables, 'default_runtime = "sluice"', ...handler);
  }
  const options = { ...tables, containerd: `${cri}.runtimes.${defaultRuntime}.options` };
  return set(engine, options, `BinaryName = "${program}"`);
}

function notRequired(engine: NodeEngine): Finding {
  const isCrio = engine.name === "crio";
  const { validator, hasValidator } = engine.nri;
  const why = "with that, NRI itself refuses containers while sluiced is away";
  if (hasValidator === false) {
    return {
      code: "plugin-not-required",
      severity: "note",
      what: `${named(engine)} cannot require an NRI plugin`,
      why: `${why}; it came with NRI 0.10`,
      fix: `install ${isCrio ? "CRI-O 1.34" : "containerd 2.2"} or newer`,
    };
  }
  if (isRequired(engine)) {
    const key = isCrio ? "nri_validator_tolerate_missing_plugins_annotation" : "tolerate_missing_plugins_annotation";
    return {
      code: "plugin-not-required",
      severity: "note",
      what: `${named(engine)} requires the NRI plugin, but not of a pod with the annotation ${validator?.toleratedBy}`,
      why: "whoever writes a pod writes its annotations",
      fix: set(engine, VALIDATOR_TABLE, `${key} = ""`),
    };
  }
  const required = [...(validator?.required ?? []), "sluice"].map((name) => JSON.stringify(name)).join(", ");
  return {
    code: "plugin-not-required",
    severity: "note",
    what: `${named(engine)} does not require the NRI plugin sluice`,
    why,
    fix: isCrio
      ? set(
          engine,
          VALIDATOR_TABLE,
          "nri_enable_default_validator = true",
          `nri_validator_required_plugins = [${required}]`,
        )
      : set(engine, VALIDATOR_TABLE, "enable = true", `required_plugins = [${required}]`),
  };
}

// --- Other plugins ---

function programsOf({ nri }: NodeFacts, { name }: Engine): readonly string[] {
  return nri.find(({ engine }) => engine === name)?.plugins ?? [];
}

function checkPluginNames(facts: NodeFacts, engine: NodeEngine): Finding[] {
  const dir = engine.nri.pluginDir;
  const wrong = programsOf(facts, engine).filter((name) => !/^\d\d-/.test(name));
  if (wrong.length === 0 || engine.nri.state === "off" || engine.nri.state === "none") return [];
  return [
    {
      code: "nri-plugin-name",
      severity: "error",
      what: `programs in ${dir} are not named as NRI plugins are (two digits, a dash, a name): ${list(wrong)}`,
      why: `NRI does not start because of them, and with it ${engine.name === "crio" ? "CRI-O" : "containerd's CRI: the kubelet has no engine after the next restart"}`,
      fix: `move them elsewhere, or take away that they can be executed: chmod a-x ${wrong.map((name) => word(`${dir}/${name}`)).join(" ")}`,
    },
  ];
}

function checkOrder(facts: NodeFacts, engine: NodeEngine): Finding[] {
  // Where plugins can validate, sluiced does, when all have had their say.
  if (engine.nri.hasValidator !== false) return [];
  const { nriIndex } = facts.settings;
  const later = programsOf(facts, engine).filter(
    (name) => /^\d\d-/.test(name) && !REQUIRED.test(name) && name.slice(0, 2) >= nriIndex,
  );
  if (later.length === 0) return [];
  return [
    {
      code: "nri-order",
      severity: "note",
      what: `${named(engine)} asks the NRI plugins ${list(later)} after sluiced (${nriIndex}), or in no certain order`,
      why: "what they add is not seen when a container is created, but only before it starts: it is refused then, and created again and again",
      fix: 'give them a lower index, or sluiced the highest: daemon.nri_index = "99"',
    },
  ];
}

// --- For people ---

/** What holds pods to what was allocated to them here, in words; `undefined` of a machine that is no node. */
export function protectionsOf({ node, engines }: Facts): string | undefined {
  const all = engines.filter((engine): engine is NodeEngine => engine.nri !== undefined);
  if (node === undefined || all.length === 0) return undefined;
  const status = statusOf(node);
  const holds = [
    ...(status?.nri === "registered" ? [`sluiced, asked by NRI of ${status.engine ?? "the engine"}`] : []),
    ...all
      .filter(hasDoor)
      .map((engine) => `sluice-runtime, the runtime of all pods of ${named(engine)} that name none`),
    ...all
      .filter((engine) => isRequired(engine) && engine.nri.state !== "off")
      .map((engine) => `NRI of ${named(engine)}, which requires sluiced`),
  ];
  if (node.trust === "engine") return "what holds pods to what the kubelet allocated: nothing, by policy.trust";
  return `what holds pods to what the kubelet allocated: ${holds.length === 0 ? "nothing" : holds.join(", ")}`;
}
