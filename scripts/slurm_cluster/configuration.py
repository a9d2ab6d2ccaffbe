"""The files of Slurm, munge and MariaDB, all within the cluster's folder."""

from __future__ import annotations

import os
import secrets
import stat

from slurm_cluster.place import NODES, Place, State
from slurm_cluster.tools import write

CLUSTER = "hpctool"
CPUS_PER_NODE = 8
MEMORY_PER_NODE_MB = 16000


def hostname() -> str:
    return os.uname().nodename.split(".")[0]


#: what is the same in all such clusters: a scheduler that looks often, and nothing that needs cgroups
ALWAYS = f"""\
ClusterName={CLUSTER}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A container may have no cgroups to give.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU={MEMORY_PER_NODE_MB // CPUS_PER_NODE}
SlurmdParameters=config_overrides
GresTypes=gpu
Licenses=solver:2
MpiDefault=none
ReturnToService=2
KillWait=5
SlurmdTimeout=15
# A step that ends while the controller is down would take its node out of service after a minute.
UnkillableStepTimeout=300
# The nodes go on with the file that they were started with.
DebugFlags=NO_CONF_HASH
MaxJobCount=50000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=200000,batch_sched_delay=1,bf_interval=1,sched_interval=2
PriorityType=priority/basic
NodeName=DEFAULT CPUs={CPUS_PER_NODE} RealMemory={MEMORY_PER_NODE_MB} Gres=gpu:2 State=UNKNOWN
PartitionName=DEFAULT Nodes=n[1-{len(NODES)}] MaxTime=1-00:00:00 DefaultTime=01:00:00
PartitionName=urgent PriorityTier=10 PreemptMode=OFF
"""


def slurm_conf(place: Place, state: State) -> str:
    """Four nodes, and the preemptible partition over them."""
    now = state.now
    own = f"""\
SlurmctldHost={hostname()}({state.controller_address})
SlurmctldPort={state.port("controller")}
SlurmdPort={state.port("node")}
AuthInfo=socket={place.munge_socket}
StateSaveLocation={place.folder}/controller
SlurmdSpoolDir={place.folder}/spool/%n
SlurmctldPidFile={place.folder}/run/slurmctld.pid
SlurmdPidFile={place.folder}/run/slurmd-%n.pid
SlurmctldLogFile={place.logs}/slurmctld.log
SlurmdLogFile={place.logs}/slurmd-%n.log
MaxArraySize={now.max_array_size}
JobRequeue={int(now.job_requeue)}
PartitionName=batch Default=YES PriorityTier=1 PreemptMode={now.preempt_mode} GraceTime={now.grace_s}
"""
    for node, feature in zip(NODES, ("old", "old", "new", "new"), strict=True):
        own += f"NodeName={node} NodeAddr={state.address(node)} NodeHostname={node} Feature={feature}\n"
    if now.user_signal:
        own += "SlurmctldParameters=preempt_send_user_signal\n"
    head = "# Written by scripts/cluster; `policy`, `limits` and `reset` write it anew.\n"
    return f"{head}{ALWAYS}{own}{accounting(place, state)}"


def accounting(place: Place, state: State) -> str:
    if not state.now.accounting:
        return "AccountingStorageType=accounting_storage/none\n"
    return f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={state.controller_address}
AccountingStoragePort={state.port("accounting")}
AccountingStoragePass={place.munge_socket}
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu
"""


def write_slurm_conf(place: Place, state: State) -> None:
    write(place.slurm_conf, slurm_conf(place, state))


def write_all(place: Place, state: State) -> None:
    """Everything that the daemons read."""
    for name in ("etc", "munge", "log", "run", "controller", "spool", "gpus", "scratch"):
        (place.folder / name).mkdir(mode=0o755)
    for host in (*NODES, "login"):
        place.scratch(host).mkdir()
        place.scratch(host).chmod(0o1777)
    etc = place.slurm_conf.parent
    write_slurm_conf(place, state)
    # Slurm wants a device, which nothing opens: these are as /dev/null.
    for number in range(2):
        os.mknod(place.folder / "gpus" / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    write(etc / "gres.conf", f"NodeName=n[1-{len(NODES)}] Name=gpu File={place.folder}/gpus/gpu[0-1]\n")
    # PMIx wants a folder that is each node's own, which /tmp is not.
    write(etc / "mpi.conf", "PMIxCliTmpDirBase=/var/tmp\n")
    # Nothing here uses cgroups, and of v1 Slurm asks no more than this, whatever the machine has.
    write(etc / "cgroup.conf", "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    write(etc / "slurmdbd.conf", slurmdbd_conf(place, state), mode=0o600)
    write(etc / "hosts", hosts(state))
    key = place.folder / "munge" / "key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))


def slurmdbd_conf(place: Place, state: State) -> str:
    # libmariadb finds the socket of "localhost" in MYSQL_UNIX_PORT, and root needs no password there.
    return f"""\
AuthType=auth/munge
AuthInfo=socket={place.munge_socket}
DbdHost={hostname()}
DbdAddr={state.controller_address}
DbdPort={state.port("accounting")}
SlurmUser=root
PidFile={place.folder}/run/slurmdbd.pid
LogFile={place.logs}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""


def hosts(state: State) -> str:
    """What /etc/hosts says within the cluster."""
    nodes = "".join(f"{state.address(node)} {node}\n" for node in NODES)
    return f"127.0.0.1 localhost\n::1 localhost\n{state.controller_address} {hostname()}\n{nodes}"


def database_options(place: Place) -> list[str]:
    """For mariadbd and its installer: small, private, and gone tomorrow, so nothing need survive a power cut."""
    folder = place.database_socket.parent
    return [
        "--no-defaults",
        f"--datadir={folder}/data",
        f"--socket={place.database_socket}",
        f"--pid-file={folder}/pid",
        f"--tmpdir={folder}",
        f"--log-error={place.logs}/mariadbd.log",
        "--user=mysql",
        "--skip-networking",
        "--innodb-buffer-pool-size=64M",
        "--innodb-log-file-size=16M",
        "--innodb-lock-wait-timeout=900",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-flush-method=nosync",
        "--performance-schema=OFF",
    ]
