/**
 * What an image demands of the machine's driver: variables `NVIDIA_REQUIRE_*`, in the language of libnvidia-container.
 *
 * Of a value, blanks part alternatives, of which one must hold, and commas part the constraints of an alternative, which
 * must all hold. A constraint is a property (in any case), an operator and a value: `cuda>=12.2`, `driver<536`,
 * `arch>=7.0`, `brand=tesla`. Several variables must all be satisfied. What stands behind an alternative that holds is
 * not looked at. What a machine does not tell holds, whatever it is compared with; that is how libnvidia-container does
 * it as well.
 */

import { printable, quote, SluiceError } from "../sys/error.ts";
import { badVariable, checkLength, type NvidiaVariables, shownName } from "./nvidia.ts";

/** One variable. */
export interface Requirement {
  readonly variable: string;
  readonly value: string;
}

const PREFIX = "NVIDIA_REQUIRE_";
/** Of Tegra: it names mounts and demands nothing. */
const JETPACK = "NVIDIA_REQUIRE_JETPACK";

/** As many as libnvidia-container takes. */
const MAX_REQUIREMENTS = 32;

/** As Go's strconv.ParseBool, with which NVIDIA's toolkit reads NVIDIA_DISABLE_REQUIRE. */
const TRUE = ["1", "t", "T", "true", "TRUE", "True"];

/**
 * The requirements of an environment; none where `NVIDIA_DISABLE_REQUIRE` says so. Their language is not checked here.
 * @throws SluiceError E_REQUEST_ENV where there are more, or longer ones, than an honest image has
 */
export function readRequirements(variables: NvidiaVariables): Requirement[] {
  if (TRUE.includes(variables.get("NVIDIA_DISABLE_REQUIRE") ?? "")) return [];
  const found: Requirement[] = [];
  for (const [variable, value] of variables) {
    if (variable.slice(0, PREFIX.length) !== PREFIX || variable.slice(0, JETPACK.length) === JETPACK) continue;
    checkLength(variable, value);
    found.push({ variable, value });
  }
  if (found.length > MAX_REQUIREMENTS) {
    throw badVariable(
      `${PREFIX}*`,
      `there are ${found.length} of them`,
      `keep at most ${MAX_REQUIREMENTS}, or set NVIDIA_DISABLE_REQUIRE=1`,
    );
  }
  return found;
}

/**
 * The newest CUDA version that each branch of the driver supports, in rising order: as the release notes of the toolkit
 * tell ("CUDA Toolkit and Corresponding Driver Versions"), and for the newest branches, which these do not name, the
 * compatibility packages of NVIDIA's driver archive. Not each was seen on a machine.
 *
 * Not here: 387, 415, 430 and 435, for which the sources differ, and the branches of Tegra (540 and all below 100), which
 * have CUDA versions of their own.
 */
const CUDA_OF_BRANCH: readonly (readonly [branch: number, cuda: string])[] = [
  [384, "9.0"],
  [390, "9.1"],
  [396, "9.2"],
  [410, "10.0"],
  [418, "10.1"],
  [440, "10.2"],
  [450, "11.0"],
  [455, "11.1"],
  [460, "11.2"],
  [465, "11.3"],
  [470, "11.4"],
  [495, "11.5"],
  [510, "11.6"],
  [515, "11.7"],
  [520, "11.8"],
  [525, "12.0"],
  [530, "12.1"],
  [535, "12.2"],
  [545, "12.3"],
  [550, "12.4"],
  [555, "12.5"],
  [560, "12.6"],
  [565, "12.7"],
  [570, "12.8"],
  [575, "12.9"],
  [580, "13.0"],
  [590, "13.1"],
  [595, "13.2"],
  [610, "13.3"],
  [615, "13.4"],
  [620, "13.5"],
];

/** A version, as far as it is known. */
interface Known {
  readonly version: string;
  /** It may be a higher one. */
  readonly isLeast: boolean;
}

/**
 * The CUDA version that a driver supports. One that is newer than all that we know supports what those do, and perhaps
 * more; `undefined` of one between them that we do not know.
 */
export function cudaOf(driver: string): Known | undefined {
  const branch = Number.parseInt(driver, 10);
  for (let i = CUDA_OF_BRANCH.length - 1; i >= 0; i--) {
    const [known, version] = CUDA_OF_BRANCH[i] as readonly [number, string];
    if (branch === known) return { version, isLeast: false };
    if (branch > known) return i === CUDA_OF_BRANCH.length - 1 ? { version, isLeast: true } : undefined;
  }
  return undefined;
}

/**
 * @param driver the version of the driver that is loaded; `undefined` where none is, or none tells: then nothing is
 * refused, since without its driver no GPU can be given anyway
 * @throws SluiceError E_REQUIREMENT where the driver does not satisfy one; E_REQUEST_ENV where a constraint that has to
 * be looked at is none
 */
export function checkRequirements(requirements: readonly Requirement[], driver: string | undefined): void {
  const cuda = driver === undefined ? undefined : cudaOf(driver);
  const known = {
    cuda,
    driver: driver === undefined ? undefined : { version: driver, isLeast: false },
  };
  for (const requirement of requirements) {
    if (!isSatisfied(requirement, known)) throw unsatisfied(requirement, driver as string, cuda);
  }
}

interface Facts {
  readonly cuda: Known | undefined;
  readonly driver: Known | undefined;
}

function isSatisfied(requirement: Requirement, facts: Facts): boolean {
  const { value } = requirement;
  /** Constraints that do not hold. */
  const failed = new Set<string>();
  let isEmpty = true;
  for (let at = 0; at < value.length; ) {
    const blank = value.indexOf(" ", at);
    const end = blank < 0 ? value.length : blank;
    if (end > at) {
      isEmpty = false;
      // CUDA's images list some sixty alternatives for older drivers: `driver<536` ends a dozen of them, one a brand.
      const alternative = value.slice(at, end);
      const last = alternative.slice(alternative.lastIndexOf(",") + 1);
      if (!failed.has(last) && holdsAll(requirement, alternative, facts, failed)) return true;
    }
    at = end + 1;
  }
  return isEmpty; // an empty value demands nothing
}

function holdsAll(requirement: Requirement, alternative: string, facts: Facts, failed: Set<string>): boolean {
  return alternative.split(",").every((constraint) => {
    if (constraint === "" || holds(requirement, constraint, facts)) return true;
    failed.add(constraint);
    return false;
  });
}

const CONSTRAINT = /^(cuda|driver|arch|brand)(!=|[<>]=?|=)([^<>=!]+)$/i;
const VERSION = /^\d{1,9}(?:\.\d{1,9}){0,5}$/;

function holds(requirement: Requirement, constraint: string, facts: Facts): boolean {
  const [, name = "", operator = "", value = ""] = CONSTRAINT.exec(constraint) ?? [];
  const property = name.toLowerCase();
  const isOrdered = property !== "brand";
  if (name === "" || (isOrdered ? !VERSION.test(value) : operator !== "=" && operator !== "!=")) {
    throw badVariable(
      requirement.variable,
      `${quote(constraint)} is not a constraint`,
      "write cuda, driver or arch with = != < <= > >= and a version, or brand with = or != and a name, such as " +
        "cuda>=12.2; or set NVIDIA_DISABLE_REQUIRE=1",
    );
  }
  // The architecture and the brand of a GPU are told by its driver's library alone.
  const known = property === "cuda" ? facts.cuda : property === "driver" ? facts.driver : undefined;
  return known === undefined || isPossible(known, operator, value);
}

/** Whether a version can be what `known` says and compare so. */
function isPossible({ version, isLeast }: Known, operator: string, value: string): boolean {
  const order = compareVersions(version, value);
  switch (operator) {
    case "=":
      return isLeast ? order <= 0 : order === 0;
    case "!=":
      return isLeast || order !== 0;
    case "<":
      return order < 0;
    case "<=":
      return order <= 0;
    case ">":
      return isLeast || order > 0;
    default:
      return isLeast || order >= 0;
  }
}

/** Number by number; missing ones count as 0. */
function compareVersions(one: string, other: string): number {
  const [a, b] = [one.split("."), other.split(".")];
  for (let i = 0; i < a.length || i < b.length; i++) {
    const difference = Number(a[i] ?? 0) - Number(b[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

function unsatisfied({ variable, value }: Requirement, driver: string, cuda: Known | undefined): SluiceError {
  const [first = "", ...others] = value.split(" ").filter((alternative) => alternative !== "");
  const needed = printable(first.slice(0, 100));
  const more = others.length === 0 ? "" : ` or one of ${others.length} alternatives`;
  const supports = cuda === undefined ? "" : ` supports CUDA ${cuda.version}${cuda.isLeast ? " at least" : ""}`;
  const remedy = /^(?:cuda|driver)>/i.test(first)
    ? "install a newer driver, use an older image"
    : "use an image that this driver will do for";
  return new SluiceError(
    "E_REQUIREMENT",
    `the image needs ${needed}${more} (variable ${shownName(variable)}), and the driver ` +
      (supports === "" ? `is ${driver}` : `${driver}${supports}`),
    `${remedy}, or set NVIDIA_DISABLE_REQUIRE=1`,
  );
}
