package probe

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// tree fills a directory like a small root: programs that are known by their
// size and time, configuration that is read, links.
func tree(tb testing.TB, dirs, files int) string {
	tb.Helper()
	root := tb.TempDir()
	must := func(err error) {
		if err != nil {
			tb.Fatal(err)
		}
	}
	for _, top := range []string{"usr", "etc"} {
		for d := range dirs {
			dir := filepath.Join(root, top, "share", fmt.Sprintf("package-%03d", d))
			must(os.MkdirAll(dir, 0o755))
			for f := range files {
				must(os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%03d.conf", f)), make([]byte, 1000+f*100), 0o644))
			}
			must(os.Symlink("file-000.conf", filepath.Join(dir, "link")))
		}
		dirs /= 10 // configuration is less
	}
	return root
}

func BenchmarkFiles(b *testing.B) {
	p := &Files{Host{Root: tree(b, 500, 20), CTime: func(st *unix.Stat_t) int64 { return st.Ctim.Sec * 1e9 }}.withDefaults()}
	params, err := protocol.EncodeOp(protocol.FilesParams{Roots: []string{"/etc", "/usr"}, Content: []string{"/etc"}})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Run(context.Background(), protocol.OpKey{1}, params); err != nil {
			b.Fatal(err)
		}
	}
}
