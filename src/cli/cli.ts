import { quote } from "../sys/error.ts";
import { EXIT } from "../sys/exit.ts";
import type { Sys } from "../sys/sys.ts";
import { VERSION } from "../sys/version.ts";
import { cdiList, cdiShow, cdiValidate } from "./cdi.ts";
import { doctorCommand } from "./doctor.ts";
import { generate } from "./generate.part.ts";
import { gpusCommand } from "./gpus.ts";
import { COMMON, type OptionKind, type Parsed, parseOptions, UsageError } from "./options.ts";
import { applyCommand, planCommand } from "./plan.ts";
import { watch } from "./watch.part.ts";

interface Command {
  /** The words that name it. */
  readonly words: string;
  readonly usage: string;
  readonly purpose: string;
  readonly options: Record<string, OptionKind>;
  run(sys: Sys, parsed: Parsed): number;
}

const BUNDLE: Record<string, OptionKind> = { bundle: "one", spec: "one", device: "many", annotation: "many" };

const COMMANDS: readonly Command[] = [
  {
    words: "plan",
    usage: "(--bundle DIR | --spec CONFIG_JSON) [--device NAME]... [--annotation K=V]...",
    purpose: "what would be injected into a container, and why; changes nothing",
    options: BUNDLE,
    run: planCommand,
  },
  {
    words: "apply",
    usage: "--bundle DIR [--device NAME]... [--annotation K=V]...",
    purpose: "inject into the config.json of a bundle on disk",
    options: { bundle: "one", device: "many", annotation: "many" },
    run: applyCommand,
  },
  {
    words: "gpus",
    usage: "",
    purpose: "the GPUs of this machine, with MIG devices and vGPUs, and who has them",
    options: {},
    run: gpusCommand,
  },
  {
    words: "doctor",
    usage: "[--engine NAME]",
    purpose: "what is wrong with this machine, why it matters, and how to put it right; changes nothing",
    options: { engine: "one" },
    run: doctorCommand,
  },
  { words: "cdi list", usage: "", purpose: "the CDI devices of this machine", options: {}, run: cdiList },
  { words: "cdi show", usage: "NAME", purpose: "one CDI device and its edits", options: {}, run: cdiShow },
  {
    words: "cdi generate",
    usage: "[--output FILE|DIR|-] [--kind KIND] [--hook PATH | --no-hook] [--replace] [--watch]",
    purpose: "write the CDI specs of this machine",
    options: { output: "one", kind: "one", hook: "one", "no-hook": "flag", replace: "flag", watch: "flag" },
    run: (sys, parsed) => (parsed.flag("watch") ? watch(sys, parsed) : generate(sys, parsed)),
  },
  { words: "cdi validate", usage: "FILE...", purpose: "check CDI spec files", options: {}, run: cdiValidate },
];

function usageOf(command: Command): string {
  return `sluice ${command.words} ${command.usage}`.trimEnd();
}

function help(): string {
  const line = (name: string, purpose: string) => `  ${name}\n      ${purpose}\n`;
  return (
    "Sluice hands GPUs to containers.\n\nUsage:\n" +
    line("sluice runtime ...", "be the OCI runtime, in front of runc or crun (also under the name sluice-runtime)") +
    line("sluice cdi-hook ...", "be the hook that the CDI specs of Sluice name; nothing for people") +
    COMMANDS.map((c) => line(usageOf(c), c.purpose)).join("") +
    line("sluice version", "the version of this program") +
    "\nOptions of every command:\n" +
    "  --json          for machines\n" +
    "  --root DIR      look at the files of another tree, such as a mounted host\n" +
    "  --config FILE   other settings than /etc/sluice/config.toml (also SLUICE_CONFIG)\n" +
    "  --cdi-dir DIR   other CDI spec folders (repeatable; later ones win)\n" +
    "\nExit codes: 0 done, 1 failed, 2 wrong usage\n"
  );
}

/** The command line for people. */
export function cli(sys: Sys): number {
  const args = sys.args.slice(1);
  const [first = "help"] = args;
  if (first === "help" || first === "--help" || first === "-h") {
    sys.out(help());
    return args.length === 0 ? EXIT.usage : EXIT.done;
  }
  if (first === "version" || first === "--version") {
    sys.out(`sluice ${VERSION}\n`);
    return EXIT.done;
  }
  const command = COMMANDS.find((c) => c.words.split(" ").every((word, i) => args[i] === word));
  try {
    if (command === undefined) throw new UsageError(`unknown command ${quote(args.slice(0, 2).join(" "))}`);
    const parsed = parseOptions(args.slice(command.words.split(" ").length), { ...COMMON, ...command.options });
    if (parsed.flag("help")) {
      sys.out(`Usage: ${usageOf(command)}\n  ${command.purpose}\n`);
      return EXIT.done;
    }
    return command.run(sys, parsed);
  } catch (thrown) {
    if (!(thrown instanceof UsageError)) throw thrown;
    const usage = command === undefined ? "sluice help" : usageOf(command);
    sys.err(`sluice: E_USAGE: ${thrown.message}; usage: ${usage}\n`);
    return EXIT.usage;
  }
}
