"""What a run will do, before it does anything: inputs, refusals, every product with its key, time, memory and disk.

inputs      resolved inputs: where model, documents and texts are
refusals    what a run is refused for, in one line each
steps       the products in their order, under the keys that their own stages give them
workload    what each of them computes, in tokens
estimate    seconds, memory and disk of that
preflight   all of it: `preflight(config) -> Plan`
command     the plan of a run or a sweep as a table
cost        what a study takes on models that need not be here
"""
