package expect

import (
	"os"
	"time"

	"portcullis/attestserver/expect/rootimage"
	"portcullis/attestserver/protocol"
)

// InodeOf reads a file's inode number, for tests that play a machine.
func InodeOf(image, path string) (uint32, error) {
	f, err := os.Open(image)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fs, err := rootimage.Open(f)
	if err != nil {
		return 0, err
	}
	file, err := fs.Lookup(path)
	if err != nil {
		return 0, err
	}
	return file.Number(), nil
}

// SetRunning sets the clock of the twin of probe.Ima.
func SetRunning(e protocol.Expectation, running func() time.Duration) { e.(*Ima).running = running }
