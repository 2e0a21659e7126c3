#!/bin/bash
# A real SLURM of this machine's own, as root, without systemd and without accounting: start.sh FOLDER PORT.
# Eight CPUs are claimed whatever there are. Partitions: normal, scavenge (its jobs are queued again) and urgent (takes
# from both). stop.sh FOLDER ends what this started, and only that.
set -euo pipefail
home=$(realpath -m "$1") port=$2
mkdir -p "$home"/{munge,state,spool,log}
chmod 755 "$home" "$home/munge"
memory=$(awk '/MemTotal/ {print int($2/1024*0.9)}' /proc/meminfo)
(umask 077; dd if=/dev/urandom of="$home/munge/key" bs=1 count=1024 status=none)
cat > "$home/slurm.conf" <<END
ClusterName=ttpa
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$home/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool/%n
SlurmctldPidFile=$home/slurmctld.own.pid
SlurmdPidFile=$home/slurmd.%n.own.pid
SlurmctldLogFile=$home/log/slurmctld.log
SlurmdLogFile=$home/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=100000,batch_sched_delay=0,requeue_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
OverTimeLimit=0
MinJobAge=600
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=20
PartitionName=normal Nodes=localhost Default=YES MaxTime=INFINITE State=UP PriorityTier=10
PartitionName=scavenge Nodes=localhost MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=urgent Nodes=localhost MaxTime=INFINITE State=UP PriorityTier=100
NodeName=localhost NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=$memory State=UNKNOWN
END
export SLURM_CONF=$home/slurm.conf
munged --foreground --key-file="$home/munge/key" --socket="$home/munge/socket" --pid-file="$home/munge/pid" \
    --log-file="$home/log/munged.log" --seed-file="$home/munge/seed" >/dev/null 2>&1 &
echo $! > "$home/munged.pid"
for _ in $(seq 50); do [ -S "$home/munge/socket" ] && break; sleep 0.1; done
slurmctld -D -c >"$home/log/slurmctld.out" 2>&1 &
echo $! > "$home/slurmctld.pid"
slurmd -D -N localhost >"$home/log/slurmd.out" 2>&1 &
echo $! > "$home/slurmd.pid"
for _ in $(seq 100); do
    [ "$(timeout 2 sinfo -h -N -p normal -o %t 2>/dev/null)" = idle ] && exit 0
    sleep 0.2
done
tail -n 5 "$home"/log/* >&2
exit 1
