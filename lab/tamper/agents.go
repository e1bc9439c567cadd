package tamper

// slowed is the agent with a hundredth of a processor.
const slowGroup = "/sys/fs/cgroup/tamper"

// agents are attacks on the agent, its answers and its key.
var agents = []Attack{
	{Name: "constant-of-the-agent-changed", Stage: Settled, FoundBy: "pmem", Reasons: []string{"pmem-patched-code"}, Detail: "hpc-agent", Commit: []string{writeConstant}},
	{Name: "mount-before-the-agent-alone", Stage: Settled, Refusal: "wrong fs type|does not exist|invalid argument",
		Commit: []string{"nsenter -m -r -w -t $(pgrep -o hpc-agent) /usr/bin/mount --bind /run /proc/sys"}},
	{Name: "agent-stopped", Stage: Alone, FoundBy: "evidence", Reasons: []string{"evidence-late", "evidence-missing", "evidence-rekey"},
		Commit: []string{"kill -STOP $(pgrep -o hpc-agent)"}, Undo: []string{"kill -CONT $(pgrep -o hpc-agent)"}},
	{Name: "agent-slowed", Stage: Alone, FoundBy: "evidence", Reasons: []string{"evidence-late", "evidence-missing", "evidence-rekey"},
		Commit: []string{"echo +cpu > /sys/fs/cgroup/cgroup.subtree_control", "mkdir -p " + slowGroup, "echo '1000 100000' > " + slowGroup + "/cpu.max",
			"echo $(pgrep -o hpc-agent) > " + slowGroup + "/cgroup.procs"},
		Undo: []string{"echo max > " + slowGroup + "/cpu.max"}},
	{Name: "agent-replaced", Stage: Alone, FoundBy: "claim", Reasons: []string{"claim-double"},
		Commit: []string{"cp /usr/lib/portcullis/hpc-agent /run/tamper-agent", "kill -9 $(pgrep -o hpc-agent)", quiet("/run/tamper-agent")}},
	{Name: "second-agent", Stage: Played, Scene: "second-claim", FoundBy: "claim", Reasons: []string{"claim-double"}},
	{Name: "late-agent", Stage: Played, Scene: "late-claim", FoundBy: "claim", Reasons: []string{"claim-late"}},
	{Name: "evidence-replayed", Stage: Played, Scene: "replayed-evidence", FoundBy: "evidence", Reasons: []string{"evidence-replayed"}},
	{Name: "agent-proxied-to-another-machine", Stage: Beside, FoundBy: "boot", Reasons: []string{"boot-id-changed"},
		Second: []string{besideHalf}, Commit: []string{askedHalf}},
	{Name: "agent-moved-to-another-machine", Stage: Played, Scene: "copied-key", FoundBy: "claim", Reasons: []string{"claim-epoch"}},
}

// unseen are attacks of which it is known that nothing finds them here, and why.
var unseen = []Attack{
	{Name: "data-of-a-process-changed", Unseen: "only code is read: data of a process may be anything",
		Commit: []string{quiet("/usr/bin/sleep 3604"), "sleep 0.3", writeStack}},
	{Name: "script-given-to-a-shell", Unseen: "the shell is a program of the image, and the script is its data", Detail: "/run/tamper-s",
		Commit: []string{"echo 'sleep 3605' > /run/tamper-s", quiet("/bin/sh /run/tamper-s")}},
	{Name: "change-between-two-questions", Unseen: "what comes and goes within a gap, and leaves no entry in the kernel's list, is met by chance only", Detail: "/srv/tamper",
		Commit: []string{"mkdir -p /srv", "echo x > /srv/tamper", "rm /srv/tamper"}},
	{Name: "secret-read", Unseen: "reading leaves no trace: what may be read by root is the PC's owner's to decide",
		Commit: []string{"cat /etc/shadow > /dev/null"}},
}

// writeConstant writes a byte of the agent's constants, with what was there: an attacker
// would write another path for the agent to read.
const writeConstant = `pid=$(pgrep -o hpc-agent)
while read -r span perms offset dev inode path; do
  [ "$perms" = r--p ] && [ "$path" = /usr/lib/portcullis/hpc-agent ] && from=$((0x${span%-*} + 65536)) && break
done < /proc/$pid/maps
dd if=/proc/$pid/mem bs=1 skip=$from count=1 of=/run/tamper-n 2>/dev/null
dd if=/run/tamper-n bs=1 seek=$from of=/proc/$pid/mem conv=notrunc 2>/dev/null`

// writeStack changes a byte of a process's stack.
const writeStack = `pid=$(pgrep -xf '/usr/bin/sleep 3604')
while read -r span perms offset dev inode path; do
  [ "$path" = "[stack]" ] && from=$((0x${span%-*}))
done < /proc/$pid/maps
printf x | dd of=/proc/$pid/mem bs=1 seek=$((from + 64)) conv=notrunc 2>/dev/null`
