#!/bin/bash
@DIRECTIVES@
# Written by `filmroll slurm`. Whenever it starts, it goes on from the run's last checkpoint.
set -u
RUN=@RUN@
PYTHON=@PYTHON@
cd @FOLDER@ || exit 1
@SETUP@

mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

"$PYTHON" -m filmroll orchestrator --run "$RUN" &
orchestrator=$!
# Before the time limit: the run ends at a checkpoint. When the job is cancelled: at once.
trap 'told=1; kill -USR1 "$orchestrator"' USR1
trap 'told=1; kill -TERM "$orchestrator"' TERM

# Leaves a process those of the job's GPUs on its node that it was given, by number.
see='
if [ "$0" != - ]; then
    IFS=, read -ra have <<<"${CUDA_VISIBLE_DEVICES:-}"
    IFS=, read -ra wanted <<<"${0#none}"
    seen=
    for number in "${wanted[@]}"; do seen+=${seen:+,}${have[number]}; done
    export CUDA_VISIBLE_DEVICES=$seen
fi
exec "$@"'

# step NAME NODE GPUS ROLE...: a process of the run, started again if it is lost while the orchestrator lives.
step() {
    local name=$1 node=${NODES[$2]} gpus=$3
    shift 3
    trap - USR1 TERM
    while kill -0 "$orchestrator" 2>/dev/null; do
        srun --job-name="$name" --nodelist="$node" --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" \
            --overlap --input=none --output="$RUN/logs/$name.step.log" --open-mode=append \
            bash -c "$see" "$gpus" "$PYTHON" -m filmroll "$@" --run "$RUN" && return
        echo "step $name on $node ended with status $?"
        sleep 5
    done
}
@STEPS@

# A signal ends the waiting, not the orchestrator; 127 says that its status is known already.
told=1
while [ -n "$told" ]; do
    told=
    wait "$orchestrator"
    now=$?
    [ "$now" -eq 127 ] || status=$now
done
trap - USR1 TERM
# The others end with it.
wait
if [ "$status" -eq 75 ]; then
    echo "stopped at a checkpoint before the time limit; the job queues again"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60
fi
exit "$status"
