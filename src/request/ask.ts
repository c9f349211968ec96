import { quote, SluiceError } from "../sys/error.ts";
import { checkName } from "./name.ts";
import { parseQuantity } from "./quantity.ts";

/** The value of a `gpu.sluice.dev` annotation (DESIGN.md section 5). */
export interface Ask {
  /** CDI device names, qualified, unique, in order. */
  readonly devices: readonly string[];
}

export const MODES = ["exclusive", "timeslice", "mig", "mps", "limiter", "vgpu"] as const;
export type Mode = (typeof MODES)[number];

/** Characters. Longer than any honest list of devices, short enough to read in no time. */
const MAX_LENGTH = 16_384;

/** Which modes a key has a meaning in. */
const MODES_OF: Record<string, readonly string[]> = {
  memory: ["mps", "limiter"],
  cores: ["mps", "limiter"],
  profile: ["mig", "vgpu"],
};

/**
 * Parses a comma list whose items with `/` are CDI device names (or, with `count`, one class name) and whose rest is
 * `key=value`: `nvidia.com/gpu=0,mode=limiter,memory=8Gi,cores=30`.
 *
 * The whole grammar is checked; what this version cannot yet give is refused with E_NOT_YET, never ignored.
 *
 * @throws SluiceError E_REQUEST_SYNTAX, E_REQUEST_KEY, E_REQUEST_VALUE, E_REQUEST_DUPLICATE, E_REQUEST_COMBINATION,
 * E_CDI_NAME, E_NOT_YET; each names the annotation
 */
export function readAskAnnotation(annotation: string, value: string): Ask {
  const bad = (code: string, what: string, remedy: string) =>
    new SluiceError(code, `annotation ${quote(annotation)}: ${what}`, remedy);
  if (value.length > MAX_LENGTH) {
    throw bad("E_REQUEST_SYNTAX", `its value has ${value.length} characters`, `keep it below ${MAX_LENGTH}`);
  }
  const devices: string[] = [];
  const classes: string[] = [];
  const options = new Map<string, string>();
  for (const raw of value.split(",")) {
    const item = raw.trim();
    const equals = item.indexOf("=");
    if (item.includes("/")) {
      const list = equals < 0 ? classes : devices;
      if (equals >= 0) checkName(item, `annotation ${quote(annotation)}`);
      if (list.includes(item)) {
        throw bad("E_REQUEST_DUPLICATE", `${quote(item)} stands in it twice`, "name each device once");
      }
      list.push(item);
    } else if (equals > 0) {
      const key = item.slice(0, equals);
      if (options.has(key)) throw bad("E_REQUEST_DUPLICATE", `${quote(key)} stands in it twice`, "keep one of them");
      options.set(key, item.slice(equals + 1));
    } else {
      throw bad(
        "E_REQUEST_SYNTAX",
        item === "" ? "it has an empty item" : `${quote(item)} is neither a device name nor key=value`,
        "write vendor/class=name items and key=value items, separated by commas",
      );
    }
  }
  checkOptions(options, bad);
  checkCombination(devices, classes, options, bad);
  if (options.size === 0) return { devices };
  for (const key of ["count", "memory", "cores", "profile"]) {
    if (options.has(key)) {
      throw bad("E_NOT_YET", `${key}= is not supported yet`, "ask for whole devices by name: vendor/class=name");
    }
  }
  const mode = options.get("mode") ?? "exclusive";
  if (mode !== "exclusive") {
    throw bad("E_NOT_YET", `mode=${mode} is not supported yet`, "use mode=exclusive, or leave the mode out");
  }
  return { devices };
}

type Bad = (code: string, what: string, remedy: string) => SluiceError;

function checkOptions(options: Map<string, string>, bad: Bad): void {
  for (const [key, value] of options) {
    const wrong = (expected: string) => bad("E_REQUEST_VALUE", `${key}=${quote(value)} is not valid`, expected);
    switch (key) {
      case "mode":
        if (!MODES.includes(value as Mode)) throw wrong(`mode is one of ${MODES.join(", ")}`);
        break;
      case "memory":
        if (!(parseQuantity(value) > 0)) throw wrong("memory is a Kubernetes quantity per device, such as 8Gi");
        break;
      case "cores":
        if (!/^(?:[1-9]\d?|100)$/.test(value)) throw wrong("cores is a percentage per device, 1 to 100");
        break;
      case "count":
        if (!/^[1-9]\d{0,3}$/.test(value)) throw wrong("count is a number of devices, 1 to 9999");
        break;
      case "profile":
        if (!/^[A-Za-z0-9][A-Za-z0-9._+ -]{0,62}$/.test(value)) {
          throw wrong("profile is a MIG or vGPU type, such as 1g.10gb");
        }
        break;
      default:
        throw bad(
          "E_REQUEST_KEY",
          `${quote(key)} is not a key that it can have`,
          "the keys are mode, memory, cores, profile and count",
        );
    }
  }
}

function checkCombination(devices: string[], classes: string[], options: Map<string, string>, bad: Bad): void {
  const clash = (what: string, remedy: string) => bad("E_REQUEST_COMBINATION", what, remedy);
  if (options.has("count")) {
    if (classes.length !== 1 || devices.length > 0) {
      throw clash("count= goes with exactly one class name", "write for example nvidia.com/gpu,count=2");
    }
  } else if (classes.length > 0) {
    throw clash(
      `${quote(classes[0] as string)} names a class, not a device`,
      "add =name, or count= for any device of it",
    );
  } else if (devices.length === 0) {
    throw clash("it names no device", "add vendor/class=name");
  }
  if (options.size === 0) return;
  const mode = options.get("mode");
  for (const [key, modes] of Object.entries(MODES_OF)) {
    if (options.has(key) && (mode === undefined || !modes.includes(mode))) {
      throw clash(
        `${key}= has no meaning with ${mode ? `mode=${mode}` : "no mode"}`,
        `use mode=${modes.join(" or mode=")}`,
      );
    }
  }
}
