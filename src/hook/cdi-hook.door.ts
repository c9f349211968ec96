import { enter } from "../sys/enter.ts";
import { sys } from "../sys/native.ts";
import { cdiHook } from "./cdi-hook.ts";

export function main(): number {
  return enter(sys, cdiHook);
}
