/**
 * Names of CDI devices: `vendor/class=name`, as in the "Kind" and "CDI Devices" sections of the CDI specification, with
 * the additions of its reference library: a name may hold `:`, and one character is enough for every part.
 */

import { quote, SluiceError } from "../sys/error.ts";

export interface DeviceName {
  /** `vendor/class`, the name of a family of devices. */
  readonly kind: string;
  readonly vendor: string;
  readonly class: string;
  readonly name: string;
}

/** The limits of the "Kind" section. The specification sets none for a device's own name. */
const VENDOR_MAX = 253;
const CLASS_MAX = 63;

// Searches without repetition: linear, and without the backtracking that a pattern for the whole name would need.
const LETTER = /[A-Za-z]/;
const ALPHANUMERIC = /[A-Za-z0-9]/;
const NOT_IN_KIND = /[^A-Za-z0-9_.-]/u;
const NOT_IN_NAME = /[^A-Za-z0-9_.:-]/u;

const REMEDY = "write it as vendor/class=name, for example nvidia.com/gpu=0";

function labelProblem(what: string, text: string, first: RegExp, foreign: RegExp, max: number): string | undefined {
  if (text === "") return `the ${what} is empty`;
  if (text.length > max) return `the ${what} has ${text.length} characters, more than ${max}`;
  const bad = foreign.exec(text);
  if (bad !== null) return `the ${what} ${quote(text)} has the character ${quote(bad[0])}, which none may hold`;
  if (!first.test(text.charAt(0))) {
    return `the ${what} ${quote(text)} does not start with a ${first === LETTER ? "letter" : "letter or digit"}`;
  }
  if (!ALPHANUMERIC.test(text.charAt(text.length - 1))) {
    return `the ${what} ${quote(text)} does not end with a letter or digit`;
  }
  return undefined;
}

/** What is wrong with a device's own name (the part after `=`), in words; `undefined` if nothing is. */
export function deviceNameProblem(name: string): string | undefined {
  return labelProblem("device name", name, ALPHANUMERIC, NOT_IN_NAME, Number.POSITIVE_INFINITY);
}

/** What is wrong with a `vendor/class`, in words; `undefined` if nothing is. */
export function kindProblem(kind: string): string | undefined {
  const slash = kind.indexOf("/");
  if (slash < 0) return 'there is no "/" between vendor and class';
  return (
    labelProblem("vendor", kind.slice(0, slash), LETTER, NOT_IN_KIND, VENDOR_MAX) ??
    labelProblem("class", kind.slice(slash + 1), LETTER, NOT_IN_KIND, CLASS_MAX)
  );
}

function nameProblem(text: string): string | undefined {
  if (text === "") return "it is empty";
  const equals = text.indexOf("=");
  if (equals < 0) return 'there is no "=" before the device name';
  return kindProblem(text.slice(0, equals)) ?? deviceNameProblem(text.slice(equals + 1));
}

/** Whether a text is a fully qualified device name. Never throws. */
export function isDeviceName(text: string): boolean {
  return nameProblem(text) === undefined;
}

/** @throws SluiceError E_CDI_NAME, which says what part is wrong and how */
export function parseDeviceName(text: string): DeviceName {
  const problem = nameProblem(text);
  if (problem !== undefined) {
    throw new SluiceError("E_CDI_NAME", `${quote(text)} is not a CDI device name: ${problem}`, REMEDY);
  }
  const equals = text.indexOf("=");
  const slash = text.indexOf("/");
  return {
    kind: text.slice(0, equals),
    vendor: text.slice(0, slash),
    class: text.slice(slash + 1, equals),
    name: text.slice(equals + 1),
  };
}
