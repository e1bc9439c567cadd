package world

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"

	"portcullis/internal/netns"
)

// startChild runs this test binary as the world inside h and waits until it serves.
func startChild(t *testing.T, h *netns.Host, control string) (end func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+control)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.Contains(line, `"ready"`) {
		t.Fatalf("the world said %q, %v", line, err)
	}
	return func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
}
