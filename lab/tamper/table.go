package tamper

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"portcullis/lab"
)

const hpcLab = "/usr/lib/portcullis/hpc-lab"

// quiet starts a command that outlives the shell.
func quiet(command string) string { return command + " >/dev/null 2>&1 </dev/null &" }

// tool runs one of hpc-lab's tools for an hour. The shell goes on when the tool says that
// it is ready, and fails as it does.
func tool(words string) string {
	return fmt.Sprintf("%s %s 3600s >/run/tamper-tool.$$ 2>&1 </dev/null & p=$!; "+
		"while [ ! -s /run/tamper-tool.$$ ] && kill -0 $p 2>/dev/null; do sleep 0.1; done; grep -q ready /run/tamper-tool.$$ || { cat /run/tamper-tool.$$ >&2; exit 1; }", hpcLab, words)
}

// Attacks is the table.
var Attacks = slices.Concat(programs, files, kernel, network, hardware, containers, agents, unseen)

// wipeNoise writes zeros over the agent's largest mapping outside of its heap:
// the noise. Root can write to any process.
const wipeNoise = `pid=$(pgrep -o hpc-agent)
best=0
while read -r span perms rest; do
  [ "$perms" = rw-p ] || continue
  from=$((0x${span%-*})); size=$((0x${span#*-} - from))
  if [ $size -eq 16777216 ]; then best=$from; fi
done < /proc/$pid/maps
[ $best -ne 0 ]
dd if=/dev/zero of=/proc/$pid/mem bs=65536 seek=$((best / 65536)) count=256 conv=notrunc 2>/dev/null || dd if=/dev/zero of=/proc/$pid/mem bs=4096 seek=$((best / 4096)) count=4096 conv=notrunc`

// poke changes bytes of a part of the kernel image, by its name in /proc/iomem.
func poke(ctx context.Context, l *lab.Lab, part string, offset uint64, data []byte) error {
	r, err := l.Exec(ctx, "/bin/cat", "/proc/iomem")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(r.Stdout)) {
		var from, to uint64
		if strings.HasSuffix(strings.TrimSpace(line), ": "+part) {
			if _, err := fmt.Sscanf(strings.TrimSpace(line), "%x-%x", &from, &to); err != nil || from+offset > to {
				return fmt.Errorf("iomem: %q: %w", line, err)
			}
			return l.PC().WritePhysical(ctx, from+offset, data)
		}
	}
	return fmt.Errorf("iomem has no %s", part)
}

// changeGate changes the handler of vector 22, which processors reserve and
// never use. Where the table lies is in the reference that attestd took.
func changeGate(ctx context.Context, l *lab.Lab) error {
	var ref struct {
		IDTAt uint64 `json:"idt_at"`
		IDT   []byte `json:"idt"`
	}
	head, err := l.Reference("krodata", 16<<10)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(head, &ref); err != nil {
		return err
	}
	// The kernel image is mapped in one piece: virtual and physical addresses differ
	// by what /proc/iomem says of the text at its fixed place.
	const text = 0xffffffff81000000
	r, err := l.Exec(ctx, "/bin/cat", "/proc/iomem")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(r.Stdout)) {
		var from, to uint64
		if !strings.HasSuffix(strings.TrimSpace(line), ": Kernel code") {
			continue
		}
		if _, err := fmt.Sscanf(strings.TrimSpace(line), "%x-%x", &from, &to); err != nil {
			return err
		}
		return l.PC().WritePhysical(ctx, from+ref.IDTAt-text+22*16, []byte{ref.IDT[22*16] ^ 1})
	}
	return fmt.Errorf("iomem has no kernel code")
}

// Quick are the attacks that need one boot, no container and no waiting.
func Quick() (out []Attack) {
	for _, a := range Attacks {
		if a.Stage == Together && !a.Docker && a.Unseen == "" {
			out = append(out, a)
		}
	}
	return out
}
