import { quote, SluiceError } from "../sys/error.ts";
import type { Rule, Settings, ShareMode } from "./config.ts";

/** By which names rules can mean a device. */
export interface DeviceNames {
  /** All names of the very device: a rule that fits one of them fits the device. */
  readonly names: readonly string[];
  /** Names of what it holds, as `all` holds each GPU: a rule that denies one of them denies the device. */
  readonly parts: readonly string[];
}

/** A device that a container would be given, or has. */
export interface RuledDevice extends DeviceNames {
  /** For a person: `annotation gpu.sluice.dev asks for nvidia.com/gpu=0`. */
  readonly what: string;
}

/**
 * Holds the rules `[[policy.allow]]` and `[[policy.deny]]` (DESIGN.md section 5) against devices. They narrow what is
 * granted, and grant nothing.
 *
 * @param namespace of the pod; `undefined` outside pods
 * @throws SluiceError E_NOT_ALLOWED
 */
export function checkRules(
  { allow, deny }: Settings["policy"],
  namespace: string | undefined,
  devices: readonly RuledDevice[],
  mode: ShareMode,
): void {
  const where = namespace === undefined ? "" : ` in the namespace ${quote(namespace)}`;
  for (const device of devices) {
    const named = [...device.names, ...device.parts];
    const denied = deny.find((rule) => isFitting(rule, namespace, named, mode));
    if (denied !== undefined) {
      throw new SluiceError(
        "E_NOT_ALLOWED",
        `${device.what}${where}, which the rule policy.deny ${shownRule(denied)} forbids`,
        "change the rule, or ask for another device",
      );
    }
    if (allow.length === 0 || allow.some((rule) => isFitting(rule, namespace, device.names, mode))) continue;
    throw new SluiceError(
      "E_NOT_ALLOWED",
      `${device.what}${where}, which none of the rules policy.allow allows`,
      "add a rule [[policy.allow]] for it, or ask for another device",
    );
  }
}

function isFitting(rule: Rule, namespace: string | undefined, names: readonly string[], mode: ShareMode): boolean {
  if (rule.namespace !== undefined && (namespace === undefined || !isLike(namespace, rule.namespace))) return false;
  if (rule.mode !== undefined && rule.mode !== mode) return false;
  const { device } = rule;
  return device === undefined || names.some((name) => isLike(name, device));
}

/** Whether a text has the form of a pattern, in which `*` stands for any characters. Takes no more than their product. */
export function isLike(text: string, pattern: string): boolean {
  const [first = "", ...rest] = pattern.split("*");
  const last = rest.pop();
  if (last === undefined) return text === pattern;
  if (!text.startsWith(first) || text.length < first.length + last.length || !text.endsWith(last)) return false;
  let at = first.length;
  for (const part of rest) {
    at = text.indexOf(part, at);
    if (at < 0) return false;
    at += part.length;
  }
  return at <= text.length - last.length;
}

function shownRule({ namespace, device, mode }: Rule): string {
  const parts = Object.entries({ namespace, device, mode }).flatMap(([key, value]) =>
    value === undefined ? [] : `${key} = ${quote(value)}`,
  );
  return `{ ${parts.join(", ")} }`;
}
