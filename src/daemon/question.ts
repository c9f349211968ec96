/** What the other doors, and `sluice`, ask sluiced on its socket: one line of JSON each. */

import type { PodContainer } from "../policy/allocation.ts";
import { printable, quote, SluiceError } from "../sys/error.ts";

export type Question = EvidenceQuestion | { readonly ask: "status" };

export interface EvidenceQuestion {
  readonly ask: "evidence";
  readonly container: PodContainer;
  /** The id of the pod's sandbox, under which an answer is remembered. */
  readonly sandbox?: string;
  /** Not from what is remembered: that was not enough for what the container asks. */
  readonly again: boolean;
}

/** Of this protocol. */
export const VERSION = 1;

/** Characters. Names of Kubernetes have at most 253, ids of containers 64. */
const MAX_NAME = 512;

const KEYS: Readonly<Record<Question["ask"], readonly string[]>> = {
  evidence: ["v", "ask", "namespace", "pod", "container", "uid", "sandbox", "again"],
  status: ["v", "ask"],
};

/**
 * `{"v":1,"ask":"evidence","namespace":"n","pod":"p","container":"c","uid":"u","sandbox":"s"}`, where uid and sandbox may
 * be absent and `"again":true` present, or `{"v":1,"ask":"status"}`.
 *
 * @throws SluiceError E_DAEMON_QUESTION
 */
export function parseQuestion(line: string): Question {
  let asked: unknown;
  try {
    asked = JSON.parse(line);
  } catch {
    throw wrong(`${quote(line)} is not JSON`);
  }
  if (typeof asked !== "object" || asked === null || Array.isArray(asked)) throw wrong(`${quote(line)} is no object`);
  const fields = asked as Readonly<Record<string, unknown>>;
  if (fields["v"] !== VERSION) throw wrong(`v is ${shown(fields["v"])}, and this sluiced speaks ${VERSION}`);
  const ask = fields["ask"];
  if (ask !== "evidence" && ask !== "status") throw wrong(`ask is ${shown(ask)}, not "evidence" or "status"`);
  const unknown = Object.keys(fields).find((key) => !KEYS[ask].includes(key));
  if (unknown !== undefined) throw wrong(`${quote(unknown)} belongs to no question of ${ask}`);
  if (ask === "status") return { ask };
  const [uid, sandbox] = [optional(fields, "uid"), optional(fields, "sandbox")];
  return {
    ask,
    container: {
      namespace: name(fields, "namespace"),
      pod: name(fields, "pod"),
      container: name(fields, "container"),
      ...(uid === undefined ? {} : { uid }),
    },
    ...(sandbox === undefined ? {} : { sandbox }),
    again: flag(fields, "again"),
  };
}

function flag(fields: Readonly<Record<string, unknown>>, key: string): boolean {
  const value = fields[key] ?? false;
  if (typeof value === "boolean") return value;
  throw wrong(`${key} is ${shown(value)}, not true or false`);
}

function optional(fields: Readonly<Record<string, unknown>>, key: string): string | undefined {
  return fields[key] === undefined ? undefined : name(fields, key);
}

function name(fields: Readonly<Record<string, unknown>>, key: string): string {
  const value = fields[key];
  if (typeof value === "string" && value !== "" && value.length <= MAX_NAME) return value;
  throw wrong(`${key} is ${shown(value)}, not a text of 1 to ${MAX_NAME} characters`);
}

function shown(value: unknown): string {
  return value === undefined
    ? "missing"
    : typeof value === "string"
      ? quote(value)
      : printable(JSON.stringify(value).slice(0, 100));
}

function wrong(what: string): SluiceError {
  return new SluiceError("E_DAEMON_QUESTION", what, "use sluice and sluiced of one version");
}
