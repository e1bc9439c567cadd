package piinit

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// keepSecrets makes sure that this program's memory, which holds keys for moments,
// ends in no file: no core dump, no other process that traces it, no swap. What is
// left in freed pages is zeroed by the kernel (init_on_free=1 on the command line).
func keepSecrets() error {
	var errs []error
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		errs = append(errs, fmt.Errorf("forbid core dumps: %w", err))
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		errs = append(errs, fmt.Errorf("limit core dumps: %w", err))
	}
	// On fault: Go reserves much more address space than it uses.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		errs = append(errs, fmt.Errorf("lock memory: %w", err))
	}
	return errors.Join(errs...)
}
