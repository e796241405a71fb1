// Command pause does nothing until it is told to stop, and leaves no zombies behind.
//
// It is the sandbox container of every pod and process 1 of the node's own namespaces.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// With SIGCHLD ignored the kernel reaps orphans itself (wait(2)); a handler that calls wait4 would be the longer way.
	signal.Ignore(syscall.SIGCHLD)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	<-stop
}
