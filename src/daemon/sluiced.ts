/** The program sluiced: puts the parts together, and does what signals tell it. */

import { Records, recordPaths } from "../kubelet/checkpoint.ts";
import { EvidenceCache } from "../kubelet/evidence.ts";
import { KubeletClient } from "../kubelet/pod-resources.ts";
import { DOOR, type EvidenceSource, nriDoor, type Outcome } from "../nri/door.ts";
import { type PluginState, type RunningPlugin, startPlugin } from "../nri/plugin.node.ts";
import type { Handlers } from "../nri/session.ts";
import { type Machine, openMachine } from "../plan/machine.ts";
import type { Evidence } from "../policy/allocation.ts";
import type { DaemonSettings } from "../policy/config.ts";
import { errorLine, SluiceError } from "../sys/error.ts";
import { sys } from "../sys/node.ts";
import { BUILD } from "../sys/version.ts";
import { ContainerCount } from "./containers.ts";
import { Daemon } from "./daemon.ts";
import { keepHeapSmall, optimizeFromNow } from "./heap.ts";
import { liveMachine } from "./live-machine.ts";
import { type Log, type Logs, logFile, openLogs } from "./logs.ts";
import { measured } from "./measured-evidence.ts";
import { Metrics } from "./metrics.ts";
import { HELP, parseOptions } from "./options.ts";
import type { EvidenceQuestion } from "./question.ts";
import type { NriStatus } from "./status.ts";

/** Milliseconds after which we end even if something is still open. */
const STOP_PATIENCE = 1500;
/** As sysexits.h has EX_SOFTWARE: a defect of ours. */
const DEFECT = 70;

async function main(): Promise<void> {
  const options = parseOptions(sys.args.slice(1));
  if ("help" in options) return sys.out(HELP);
  if ("version" in options) return sys.out(`sluiced ${BUILD}\n`);

  const open = () => openMachine(sys, options.config === undefined ? {} : { config: options.config });
  const machine = open();
  const settings = machine.settings.daemon;
  const logs = openLogs(settings.logLevel, logFile(machine.logDir));
  const { log } = logs;
  process.on("uncaughtException", (thrown) => fail(thrown, logs));
  log.info({ version: BUILD, pid: process.pid, node: process.version }, "starting");

  keepHeapSmall();
  const live = liveMachine(open, log);
  const kubelet = new KubeletClient(sys, sys.euid, settings.kubeletSocket);
  const records = new Records(sys, sys.euid, recordPaths(settings.kubeletSocket));
  const containers = new ContainerCount(`${machine.stateDir}/receipts`);
  const metrics = new Metrics(() => containers.count());
  const evidence = measured(new EvidenceCache({ podResources: kubelet, records }), metrics);
  const daemon = new Daemon({
    settings,
    stateDir: machine.stateDir,
    log,
    env: process.env,
    metrics,
    evidence: (question) => answer(question, evidence, live().settings.daemon.evidenceDeadline),
  });
  let plugin: RunningPlugin | undefined;
  let stopping = false;
  const stop = (why: object): void => {
    if (stopping) return;
    stopping = true;
    log.info(why, "stopping");
    setTimeout(() => end(logs, 0), STOP_PATIENCE);
    kubelet.close();
    void Promise.all([daemon.stop(), plugin?.stop()]).then(() => end(logs, 0));
  };
  process.on("SIGTERM", (signal) => stop({ signal }));
  process.on("SIGINT", (signal) => stop({ signal }));
  process.on("SIGHUP", () => reload(logs, settings, open));

  // The engine starts its own plugins whether the setting says so or not.
  const wanted = settings.nri || process.env["NRI_PLUGIN_SOCKET"] !== undefined;
  try {
    await daemon.start({ state: wanted ? "waiting" : "off" });
  } catch (thrown) {
    fail(thrown, logs);
  }
  if (!wanted || stopping) return;
  plugin = startPlugin({
    name: "sluice",
    index: settings.nriIndex,
    socket: settings.nriSocket,
    handlers: handlersOf(live, evidence, metrics, log),
    env: process.env,
    onState: (state) => {
      if (state.state === "registered") optimizeFromNow();
      daemon.nri(statusOf(state));
      if ("error" in state) log.warn({ err: state.error }, `NRI: ${state.state}`);
      else log.info(state, `NRI: ${state.state}`);
    },
  });
  await plugin.ended;
  stop({ launched: plugin.isLaunched });
}

/** Within the deadline; at once, where what the sandbox's creation has had asked ahead is enough. */
async function answer(question: EvidenceQuestion, source: EvidenceSource, deadline: number): Promise<Evidence> {
  const { container, sandbox, again } = question;
  // Without its sandbox a pod cannot be told from an earlier one of its name: nothing is remembered of it.
  if (sandbox === undefined) {
    return source.of(`question ${container.namespace}/${container.pod}`, container, deadline, { again: true });
  }
  return (again ? undefined : source.known(sandbox, container)) ?? source.of(sandbox, container, deadline, { again });
}

/** The door, timed, and told of in the log and the metrics. */
function handlersOf(machine: () => Machine, evidence: EvidenceSource, metrics: Metrics, log: Log): Handlers {
  let told = false;
  const door = nriDoor({
    machine,
    evidence,
    observe(outcome) {
      told = true;
      tell(outcome, metrics, log);
    },
  });
  return {
    ...door,
    createContainer(pod, container, runtime, request) {
      const start = performance.now();
      told = false; // the runtime asks for one container at a time
      const answered = (): void => {
        metrics.answeredCreateContainer((performance.now() - start) / 1000);
        if (!told) metrics.decided(DOOR, "untouched");
      };
      let isLater = false;
      try {
        const answer = door.createContainer?.(pod, container, runtime, request);
        isLater = answer instanceof Promise;
        return answer instanceof Promise ? answer.finally(answered) : answer;
      } finally {
        if (!isLater) answered();
      }
    },
  };
}

function tell({ container, id, event, given, refusal }: Outcome, metrics: Metrics, log: Log): void {
  if (refusal !== undefined) {
    metrics.decided(DOOR, "refused", refusal.code);
    log.warn({ ...container, id, event, code: refusal.code }, refusal.message);
  } else {
    metrics.decided(DOOR, given.length === 0 ? "reported" : "granted");
    // The audit log has it: one line written is enough while a container waits.
    if (log.isLevelEnabled("debug"))
      log.debug({ ...container, id, event, given }, given.length === 0 ? "nothing given" : "given");
  }
}

function statusOf(state: PluginState): NriStatus {
  if (state.state === "registered") {
    return { state: "registered", engine: `${state.runtime.name} ${state.runtime.version}` };
  }
  return state.state === "connected" ? { state: "connected" } : { state: "waiting", why: state.error.what };
}

/**
 * At SIGHUP. What the doors use is read again whenever the file has changed (live-machine.ts); of the daemon's own settings
 * most hold until it ends, since connections rest on them.
 */
function reload(logs: Logs, old: DaemonSettings, open: () => Machine): void {
  const { log } = logs;
  try {
    logs.reopen();
    const { daemon } = open().settings;
    logs.setLevel(daemon.logLevel);
    const changed = (Object.keys(daemon) as (keyof DaemonSettings)[]).filter(
      (key) => key !== "logLevel" && key !== "evidenceDeadline" && daemon[key] !== old[key],
    );
    if (changed.length > 0) log.warn({ changed }, "these settings hold once sluiced is restarted");
    log.info("settings read again");
  } catch (thrown) {
    log.error({ err: thrown }, "the settings stay as they were");
  }
}

/** Tells what ended us, where it can be read. */
function fail(thrown: unknown, logs?: Logs): never {
  const defect = !(thrown instanceof SluiceError);
  const stack = defect && thrown instanceof Error ? `\n${thrown.stack}` : "";
  sys.err(`${errorLine(thrown)}${stack}\n`);
  if (logs?.file !== undefined) logs.log.fatal({ err: thrown }, errorLine(thrown));
  return end(logs, thrown instanceof SluiceError && thrown.code === "E_USAGE" ? 2 : defect ? DEFECT : 1);
}

function end(logs: Logs | undefined, code: number): never {
  logs?.flush();
  process.exit(code);
}

main().catch((thrown: unknown) => fail(thrown));
