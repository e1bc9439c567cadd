package debroot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"portcullis/images/deb"
)

// maxInitrd bounds the unpacked initrd in bytes.
const maxInitrd = 512 << 20

// ReadInitrd returns a file of an initrd that is compressed with zstd or xz.
func ReadInitrd(compressed []byte, name string) ([]byte, error) {
	archive, err := UnpackInitrd(compressed)
	if err != nil {
		return nil, err
	}
	return findInArchive(archive, name)
}

// UnpackInitrd returns the archive in an initrd that is compressed with zstd or xz.
func UnpackInitrd(compressed []byte) ([]byte, error) {
	unpack := unzstd
	if bytes.HasPrefix(compressed, []byte("\xFD7zXZ\x00")) {
		unpack = unxz
	}
	archive, err := unpack(compressed)
	if err != nil {
		return nil, fmt.Errorf("initrd: %w", err)
	}
	return archive, nil
}

func unzstd(compressed []byte) ([]byte, error) {
	d, err := zstd.NewReader(bytes.NewReader(compressed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxInitrd))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return io.ReadAll(io.LimitReader(d, maxInitrd))
}

// unxz runs xz(1): no library in Go knows the filter for arm64 code.
func unxz(compressed []byte) ([]byte, error) {
	tool, err := deb.NeedTool("xz", "xz-utils")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel() // ends it where the archive is larger than it may be
	cmd := exec.CommandContext(ctx, tool, "--decompress", "--stdout", "--no-sparse", "--memlimit-decompress=64MiB")
	var errs bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(compressed), &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	archive, err := io.ReadAll(io.LimitReader(out, maxInitrd))
	if err == nil && len(archive) == maxInitrd {
		err = fmt.Errorf("more than %d MiB", maxInitrd>>20)
	}
	if err != nil {
		cancel()
		cmd.Wait()
		return nil, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("xz: %w: %s", err, bytes.TrimSpace(errs.Bytes()))
	}
	return archive, nil
}

// errArchive is an initrd that is not a newc archive.
var errArchive = errors.New("not a newc archive")

// findInArchive walks a newc archive: a header of 110 bytes with 13 fields of 8
// hex digits, the name, the content, each padded to 4 bytes.
func findInArchive(archive []byte, name string) ([]byte, error) {
	const header, trailer = 110, "TRAILER!!!"
	align := func(n int) int { return (n + 3) &^ 3 }
	for at := 0; ; {
		if len(archive)-at < header || string(archive[at:at+6]) != "070701" {
			return nil, errArchive
		}
		field := func(i int) (int, error) {
			v, err := strconv.ParseUint(string(archive[at+6+8*i:at+14+8*i]), 16, 31)
			return int(v), err
		}
		size, err1 := field(6)
		nameSize, err2 := field(11)
		if err1 != nil || err2 != nil || nameSize < 1 || nameSize > 4096 {
			return nil, errArchive
		}
		begin := align(at + header + nameSize)
		if begin+size > len(archive) {
			return nil, errArchive
		}
		switch string(archive[at+header : at+header+nameSize-1]) {
		case name:
			return archive[begin : begin+size], nil
		case trailer:
			return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		at = align(begin + size)
	}
}

// ReadSquash returns a file of a squashfs.
func ReadSquash(ctx context.Context, img, name string) ([]byte, error) {
	tool, err := deb.NeedTool("unsquashfs", "squashfs-tools")
	if err != nil {
		return nil, err
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, tool, "-cat", img, strings.TrimPrefix(name, "/"))
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, &Error{ReasonRoot, "read " + name + " of the root image", fmt.Errorf("%w: %s", err, bytes.TrimSpace(errs.Bytes()))}
	}
	return out.Bytes(), nil
}

// HasSquash tells whether a squashfs has a path.
func HasSquash(ctx context.Context, img, name string) (bool, error) {
	tool, err := deb.NeedTool("unsquashfs", "squashfs-tools")
	if err != nil {
		return false, err
	}
	// -lc lists what is there of the paths that are named; the root is always there.
	out, err := exec.CommandContext(ctx, tool, "-lc", img, strings.TrimPrefix(name, "/")).Output()
	if err != nil {
		return false, fmt.Errorf("list the root image: %w", err)
	}
	for _, line := range strings.Split(string(out), "\n") {
		if strings.TrimPrefix(line, "squashfs-root") == name {
			return true, nil
		}
	}
	return false, nil
}
