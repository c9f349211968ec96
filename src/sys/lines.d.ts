/** Made by scripts/build.ts: for each bundle of the executable, the TypeScript place of each of its lines. */
declare module "sluice:lines" {
  const lines: Record<string, readonly string[]>;
  export default lines;
}
