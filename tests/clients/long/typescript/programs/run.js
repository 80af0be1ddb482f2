// Runs a step of steps.js in Node. Reads its name and its arguments as JSON, and prints what it returns.
import { steps } from "./steps.js";

const [name, given] = process.argv.slice(2);
console.log(JSON.stringify(await steps[name](JSON.parse(given))));
