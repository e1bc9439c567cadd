// Command probe is what the images of tests run: it says where it stands, and ends
// or waits as it is told. It is static, so that it needs nothing beside it.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	arguments := os.Args[1:]
	if len(arguments) == 0 {
		arguments = []string{"say", "hello"}
	}
	switch arguments[0] {
	case "say": // words to standard output
		fmt.Println(strings.Join(arguments[1:], " "))
	case "exit": // with a code
		fmt.Fprintln(os.Stderr, "ends")
		code, _ := strconv.Atoi(arguments[1])
		os.Exit(code)
	case "wait": // until it is told to end
		end := make(chan os.Signal, 1)
		signal.Notify(end, syscall.SIGTERM)
		fmt.Println("waits")
		select {
		case <-end:
		case <-time.After(10 * time.Minute):
		}
	case "look": // what it may do
		look()
	}
}

func look() {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		fmt.Println(err)
	}
	for _, line := range strings.Split(string(status), "\n") {
		for _, key := range []string{"CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:", "Uid:"} {
			if strings.HasPrefix(line, key) {
				fmt.Println(strings.Join(strings.Fields(line), " "))
			}
		}
	}
	fmt.Println("write /:", os.WriteFile("/written", nil, 0o600))
	links, err := os.ReadDir("/sys/class/net")
	for _, l := range links {
		fmt.Println("link", l.Name())
	}
	if err != nil {
		fmt.Println(err)
	}
}
