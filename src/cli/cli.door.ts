import { enter } from "../sys/enter.ts";
import { sys } from "../sys/native.ts";
import { cli } from "./cli.ts";

export function main(): number {
  return enter(sys, cli);
}
