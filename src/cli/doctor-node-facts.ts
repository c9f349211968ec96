/** What `sluice doctor` looks at on a node of Kubernetes, beside the rest (doctor-facts.ts). */

import type { Engine, EngineName } from "../host/engines.part.ts";
import type { Look } from "../host/look.ts";
import type { Machine } from "../plan/machine.ts";
import type { Settings } from "../policy/config.ts";
import { OsError } from "../sys/error.ts";

/** What sluiced says of itself (src/daemon/status.ts), as far as it matters here. */
export interface DaemonStatus {
  readonly version: string;
  readonly nri: "off" | "waiting" | "connected" | "registered";
  /** `containerd v2.1.4`, where it is registered. */
  readonly engine?: string;
  /** Why it is not. */
  readonly why?: string;
}

export interface NodeFacts {
  readonly trust: Settings["policy"]["trust"];
  readonly settings: Settings["daemon"];
  /** sluiced, or why it does not answer; absent where it cannot be asked: of another tree. */
  readonly daemon?: DaemonStatus | { readonly fault: string };
  /** Whether its program is there, or its socket: pods are meant to go through Sluice. */
  readonly hasDaemon: boolean;
  /** Where the runtime door is, or else where a package puts it. */
  readonly runtimePath: string;
  /** What is wrong with the kubelet's socket; absent where nothing is, and of another tree. */
  readonly kubeletFault?: string;
  readonly nri: readonly NriFacts[];
}

/** Of an engine that knows NRI. */
export interface NriFacts {
  readonly engine: EngineName;
  /** Whether its socket is there; absent of another tree. */
  readonly hasSocket?: boolean;
  /** The programs in the folder of the plugins that it starts. */
  readonly plugins: readonly string[];
}

/** Where packages put our programs, and where people do. */
const FOLDERS = ["/usr/bin", "/usr/local/bin"];

/** Bytes of sluiced's answer, and milliseconds that it has for it. */
const ANSWER = 1 << 20;
const PATIENCE = 2000;

/** @returns `undefined` of a machine whose containers no kubelet starts */
export function readNode(look: Look, machine: Machine, engines: readonly Engine[]): NodeFacts | undefined {
  const { sys, host, settings, stateDir } = machine;
  const isOwn = host === sys;
  const daemonSocket = `${stateDir}/sluiced.sock`;
  const { kubeletSocket } = settings.daemon;
  // DIR/pod-resources/kubelet.sock: the folder that a kubelet's --root-dir names.
  const hasKubelet = look.stat(above(above(kubeletSocket)))?.kind === "dir";
  const isThere = (path: string): boolean => look.stat(path) !== undefined;
  const hasSocket = isOwn && isThere(daemonSocket);
  if (!hasKubelet && !hasSocket) return undefined;
  const daemon = isOwn ? askStatus(look, machine, daemonSocket) : undefined;
  const kubeletFault = isOwn ? kubeletFaultOf(look, sys.euid, kubeletSocket) : undefined;
  return {
    trust: settings.policy.trust,
    settings: settings.daemon,
    ...(daemon === undefined ? {} : { daemon }),
    hasDaemon: FOLDERS.some((dir) => isThere(`${dir}/sluiced`)) || hasSocket,
    runtimePath: FOLDERS.map((dir) => `${dir}/sluice-runtime`).find(isThere) ?? `${FOLDERS[0]}/sluice-runtime`,
    ...(kubeletFault === undefined ? {} : { kubeletFault }),
    nri: engines.flatMap(({ name, nri }) =>
      nri === undefined
        ? []
        : [
            {
              engine: name,
              ...(isOwn ? { hasSocket: look.stat(nri.socket)?.kind === "socket" } : {}),
              plugins: programsIn(look, nri.pluginDir),
            },
          ],
    ),
  };
}

function above(path: string): string {
  return path.slice(0, Math.max(path.lastIndexOf("/"), 0)) || "/";
}

/** As sluiced itself takes it (src/kubelet/pod-resources.ts). */
function kubeletFaultOf(look: Look, euid: number, path: string): string | undefined {
  const before = look.unseen.length;
  const stat = look.stat(path);
  if (look.unseen.length > before) return undefined; // told as such
  if (stat === undefined) return `${path} is not there`;
  if (stat.kind !== "socket") return `${path} is no socket`;
  return stat.uid === 0 || stat.uid === euid ? undefined : `${path} belongs to user ${stat.uid}, not root`;
}

const FAULTS: Readonly<Record<string, string>> = {
  ENOENT: "is not there",
  ECONNREFUSED: "is what a sluiced left that was killed: nobody listens",
  EPERM: "is another user's, who could say anything",
  ETIMEDOUT: "gives no answer in time",
};

/** @returns `undefined` where this program or this user cannot ask */
function askStatus(look: Look, { sys }: Machine, path: string): NodeFacts["daemon"] {
  if (sys.ask === undefined) return undefined;
  let answer: unknown;
  try {
    answer = JSON.parse(sys.ask(path, `${JSON.stringify({ v: 1, ask: "status" })}\n`, ANSWER, PATIENCE));
  } catch (thrown) {
    if (thrown instanceof OsError) {
      if (thrown.code !== "EACCES")
        return { fault: `${path} ${FAULTS[thrown.code] ?? `cannot be asked (${thrown.code})`}` };
      look.note(path, thrown.code);
      return undefined;
    }
    if (thrown instanceof SyntaxError) return { fault: `what answers on ${path} is not sluiced` };
    throw thrown;
  }
  return statusIn(answer) ?? { fault: `sluiced on ${path} gives no answer that this version understands` };
}

const STATES = ["off", "waiting", "connected", "registered"] as const;

function statusIn(answer: unknown): DaemonStatus | undefined {
  const { version, nri } = fieldsOf(answer);
  const { state, engine, why } = fieldsOf(nri);
  const known = STATES.find((one) => one === state);
  if (typeof version !== "string" || known === undefined) return undefined;
  return {
    version,
    nri: known,
    ...(typeof engine === "string" ? { engine } : {}),
    ...(typeof why === "string" ? { why } : {}),
  };
}

function fieldsOf(value: unknown): Partial<Readonly<Record<string, unknown>>> {
  return typeof value === "object" && value !== null ? (value as Readonly<Record<string, unknown>>) : {};
}

/** What NRI takes for plugins: all that is no folder and that somebody may execute, links as they are. */
function programsIn(look: Look, dir: string): string[] {
  return look.names(dir).filter((name) => {
    const path = `${dir}/${name}`;
    if (look.link(path) !== undefined) return true;
    const stat = look.stat(path);
    return stat !== undefined && stat.kind !== "dir" && (stat.mode & 0o111) !== 0;
  });
}
