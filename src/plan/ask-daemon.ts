import type { Allocation, Evidence, PodContainer } from "../policy/allocation.ts";
import { OsError, printable } from "../sys/error.ts";
import type { Machine } from "./machine.ts";

/** Bytes of an answer; the kubelet's own clients take as much. */
const LIMIT = 16 << 20;
/** Milliseconds that sluiced may take beyond what it gives the kubelet. */
const GRACE = 500;
/** Characters of a reason that is passed on. */
const MAX_REASON = 1000;

/**
 * Asks sluiced on its socket what the kubelet allocated to a container (src/daemon/question.ts). Never throws.
 * @param again do not rely on what is remembered
 */
export function askDaemon(
  machine: Machine,
  container: PodContainer,
  sandbox: string | undefined,
  again: boolean,
): Evidence {
  const { sys, stateDir, settings } = machine;
  const path = `${stateDir}/sluiced.sock`;
  if (sys.ask === undefined) return { unavailable: "this program cannot ask sluiced" };
  const question = { v: 1, ask: "evidence", ...container, ...(sandbox === undefined ? {} : { sandbox }), again };
  let text: string;
  try {
    text = sys.ask(path, `${JSON.stringify(question)}\n`, LIMIT, settings.daemon.evidenceDeadline + GRACE);
  } catch (thrown) {
    if (thrown instanceof OsError) return { unavailable: `sluiced cannot be asked (${printable(thrown.message)})` };
    throw thrown;
  }
  let answer: unknown;
  try {
    answer = JSON.parse(text);
  } catch {
    return { unavailable: `what answers on ${path} is not sluiced` };
  }
  const { v, unavailable, error, from, allocation, notes = [] } = fieldsOf(answer);
  const reason = unavailable ?? error;
  if (v === 1 && typeof reason === "string") return { unavailable: printable(reason.slice(0, MAX_REASON)) };
  if (v !== 1 || typeof from !== "string" || !isAllocation(allocation) || !areTexts(notes)) {
    return { unavailable: `sluiced on ${path} gives no answer that this version understands` };
  }
  return { from, allocation, ...(notes.length === 0 ? {} : { notes }) };
}

type Fields = Readonly<Record<string, unknown>>;

function fieldsOf(value: unknown): Fields {
  return typeof value === "object" && value !== null ? (value as Fields) : {};
}

function isAllocation(value: unknown): value is Allocation {
  const { devices, claims } = fieldsOf(value);
  return areAll(devices, isOfPlugin) && areAll(claims, isClaim);
}

function isOfPlugin(value: unknown): boolean {
  const { resource, ids, answer } = fieldsOf(value);
  const { visible, cdiDevices, nodes } = fieldsOf(answer);
  const isAnswer = answer === undefined || (areTexts(visible) && areTexts(cdiDevices) && areTexts(nodes));
  return typeof resource === "string" && areTexts(ids) && isAnswer;
}

function isClaim(value: unknown): boolean {
  const { namespace, name, driver, pool, device, cdiDevices } = fieldsOf(value);
  return areTexts([namespace, name, driver, pool, device]) && areTexts(cdiDevices);
}

function areAll(value: unknown, isRight: (item: unknown) => boolean): boolean {
  return Array.isArray(value) && value.every(isRight);
}

function areTexts(value: unknown): value is string[] {
  return areAll(value, (item) => typeof item === "string");
}
