package boot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// OpenBeneath opens name below the directory dir. It follows no symbolic link on the
// way or at the end, and does not leave the file system of dir: what is below was
// written by whoever had the volume.
func OpenBeneath(dir, name string, flags int) (*os.File, error) {
	d, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(d)
	flags |= unix.O_CLOEXEC | unix.O_NOFOLLOW
	if flags&unix.O_PATH == 0 {
		flags |= unix.O_NONBLOCK // a FIFO has nobody at its other end
	}
	fd, err := unix.Openat2(d, name, &unix.OpenHow{
		Flags:   uint64(flags),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir + "/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), dir+"/"+name), nil
}

// ReadBeneath returns a regular file of at most max bytes below dir, see OpenBeneath.
// fs.ErrNotExist says that nothing has that name.
func ReadBeneath(dir, name string, max int64) ([]byte, error) {
	f, err := OpenBeneath(dir, name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > max {
		return nil, fmt.Errorf("%s is %s of %d bytes, not a file of at most %d", f.Name(), st.Mode(), st.Size(), max)
	}
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("%s has more than %d bytes", f.Name(), max)
	}
	return b, err
}

// DirBeneath opens the directory name directly below dir, and makes it where nothing
// has that name. The file is a handle (O_PATH): /proc/self/fd/N is the directory.
func DirBeneath(dir, name string, mode uint32) (*os.File, error) {
	f, err := OpenBeneath(dir, name, unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	d, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(d)
	if err := unix.Mkdirat(d, name, mode); err != nil {
		return nil, &fs.PathError{Op: "mkdir", Path: dir + "/" + name, Err: err}
	}
	return OpenBeneath(dir, name, unix.O_PATH|unix.O_DIRECTORY)
}
