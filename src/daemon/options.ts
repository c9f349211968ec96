import { parseArgs } from "node:util";
import { SluiceError } from "../sys/error.ts";

export type Options = { readonly help: true } | { readonly version: true } | { readonly config: string | undefined };

export const HELP = `sluiced: the daemon of Sluice on a node of Kubernetes

  sluiced [--config FILE]    run until SIGTERM; SIGHUP reads the settings again
  sluiced --version
  sluiced --help

It is an NRI plugin of containerd or CRI-O, and tells Sluice's other doors what the kubelet allocated. The settings are
those of sluice (/etc/sluice/config.toml). It logs to standard error.
`;

/** @throws SluiceError E_USAGE */
export function parseOptions(args: readonly string[]): Options {
  try {
    const { values } = parseArgs({
      args: [...args],
      options: {
        config: { type: "string" },
        version: { type: "boolean" },
        help: { type: "boolean", short: "h" },
      },
    });
    if (values.help) return { help: true };
    if (values.version) return { version: true };
    return { config: values.config };
  } catch (thrown) {
    throw new SluiceError("E_USAGE", (thrown as Error).message, "see sluiced --help", thrown);
  }
}
