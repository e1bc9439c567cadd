package protocol

// Container is one container of the PC's runtime.
type Container struct {
	ID         string   `json:"id"`      // 64 hex digits
	Image      string   `json:"image"`   // SHA-256 of the image's configuration, hex; empty where the runtime does not know the container
	Genuine    bool     `json:"genuine"` // the configuration that is stored under that name has that digest
	Command    string   `json:"command"`
	Privileged []string `json:"privileged"` // what it may do beyond its walls, one word or path each
	Upper      string   `json:"upper"`      // hex: SHA-256 over names, modes and sizes of what it has written
	Written    []string `json:"written"`    // programs among that, the first of them
}

// Stray is a process behind walls that belongs to no container of the runtime.
type Stray struct {
	PID    int    `json:"pid"`
	Comm   string `json:"comm"`
	CGroup string `json:"cgroup"`
}

// ContainerData is the answer of op container.
type ContainerData struct {
	Containers []Container `json:"containers"` // that run, sorted by id
	Strays     []Stray     `json:"strays"`
}

// Limits of ContainerData.
const (
	MaxContainers = 512
	MaxPrivileges = 64 // of one container
	MaxWritten    = 16 // programs that are named of one container
)

// Check bounds the lists and strings.
func (d *ContainerData) Check() error {
	if err := atMost("containers", max(len(d.Containers), len(d.Strays)), MaxContainers); err != nil {
		return err
	}
	for _, c := range d.Containers {
		if err := atMost("privileges", len(c.Privileged), MaxPrivileges); err != nil {
			return err
		}
		if err := atMost("programs", len(c.Written), MaxWritten); err != nil {
			return err
		}
		if err := short("container", append(append([]string{c.ID, c.Image, c.Command, c.Upper}, c.Privileged...), c.Written...)...); err != nil {
			return err
		}
	}
	for _, s := range d.Strays {
		if err := short("process", s.Comm, s.CGroup); err != nil {
			return err
		}
	}
	return nil
}
